"""GPTQ: round column by column, and let later columns make up for each column's error.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers" (ICLR 2023), algorithm 1; static groups keep the plain layout in any visiting order.
"""

from dataclasses import dataclass

import torch

from quant.format.scheme import IntScheme
from quant.rounding_algorithms.factor import Factor
from quant.rounding_algorithms.grid import Grid, ScaleDtype, decode, to_quantized_tensor
from quant.rounding_algorithms.refit import refit_grid
from quant.rounding_algorithms.result import (
    AS_ASKED,
    Rounded,
    quadratic_form,
    relative_errors,
)
from quant.rounding_algorithms.rtn import choose_grid

_COLUMN_CHUNK = 128


@dataclass(frozen=True)
class GptqOptions:
    """damping: first rung of the ladder. refits: closed-form refits of the scales, each followed
    by another pass; a row keeps whichever pass lost least under the Hessian."""

    damping: float = 0.01
    by_activation: bool = True
    search: bool = True
    refits: int = 1


def gptq(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    factored: Factor,
    scheme: IntScheme,
    dtype: ScaleDtype,
    options: GptqOptions,
) -> Rounded:
    """Round `weight` (float32 [out, in]) so that (W - Q) H (W - Q)^T is small.

    hessian: float32 [in, in], mean of x x^T over the calibration tokens; factored: the same,
    damped and factored, so that linears that share an input share the work.
    """
    dead = hessian.diagonal() == 0
    grid = choose_grid(weight, _importance(hessian), scheme, dtype, options.search)
    codes, dequantized = _feedback_pass(weight, factored, grid, scheme)
    loss = quadratic_form(weight - dequantized, hessian)
    for _ in range(options.refits):
        candidate = refit_grid(weight, codes, grid, hessian, scheme, dtype)
        new_codes, new_dequantized = _feedback_pass(weight, factored, candidate, scheme)
        new_loss = quadratic_form(weight - new_dequantized, hessian)
        better = (new_loss < loss)[:, None]
        grid = grid.where(better, candidate)
        codes = torch.where(better, new_codes, codes)
        dequantized = torch.where(better, new_dequantized, dequantized)
        loss = torch.where(better[:, 0], new_loss, loss)
    raised = factored.damping > options.damping
    weight_error, output_error = relative_errors(weight, dequantized, hessian)
    return Rounded(
        to_quantized_tensor(codes, grid, scheme, dtype),
        dequantized,
        f"damping raised to {factored.damping:g}" if raised else AS_ASKED,
        factored.damping,
        int(dead.sum()),
        weight_error,
        output_error,
    )


def _importance(hessian: torch.Tensor) -> torch.Tensor:
    """diag(H), floored so that columns never excited still count a little in their group."""
    diagonal = hessian.diagonal()
    floor = 1e-4 * float(diagonal.mean())
    return diagonal.clamp(min=floor if floor > 0 else 1.0)


def _feedback_pass(
    weight: torch.Tensor, factored: Factor, grid: Grid, scheme: IntScheme
) -> tuple[torch.Tensor, torch.Tensor]:
    """(codes, dequantized), both float32 [out, in] in plain column order.

    Works on the transpose, so that the column in hand is contiguous. Inside a chunk each error is
    spread at once; columns beyond it get the whole chunk's errors in one product.
    """
    order, upper = factored.order, factored.upper
    wide = grid.columns(scheme.group_size(weight.shape[1]))
    left = weight.T[order].contiguous()
    scale = wide.scale.T[order].contiguous()
    zero = wide.zero.T[order].contiguous()
    codes = torch.empty_like(left)
    for start in range(0, len(left), _COLUMN_CHUNK):
        stop = min(start + _COLUMN_CHUNK, len(left))
        errors = torch.empty_like(left[start:stop])
        for j in range(start, stop):
            q = torch.round(left[j] / scale[j]).add_(zero[j]).clamp_(scheme.qmin, scheme.qmax)
            codes[j] = q
            error = left[j] - (q - zero[j]) * scale[j]
            error /= upper[j, j]
            errors[j - start] = error
            left[j + 1 : stop].addr_(upper[j, j + 1 : stop], error, alpha=-1.0)
        left[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1.0)
    plain = torch.empty_like(codes)
    plain[order] = codes
    result = plain.T.contiguous()
    return result, decode(result, wide)
