"""GPTQ: round column by column, and let later columns make up for each column's error.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers" (ICLR 2023), algorithm 1; static groups keep the plain layout in any visiting order.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from quant.format.scheme import IntScheme
from quant.rounding_algorithms.factor import Factor
from quant.rounding_algorithms.grid import (
    Grid,
    ScaleDtype,
    decode,
    nearest_codes,
    to_quantized_tensor,
)
from quant.rounding_algorithms.refit import refit_grid
from quant.rounding_algorithms.result import (
    AS_ASKED,
    Rounded,
    quadratic_form,
    relative_errors,
)
from quant.rounding_algorithms.rtn import choose_grid
from quant.rounding_algorithms.sweep import sweep_codes
from quant.tasks import ScaleChoice

_COLUMN_CHUNK = 128


@dataclass(frozen=True)
class GptqOptions:
    """damping: first rung of the ladder. polish: rounds of a closed-form refit of the scales and a
    sweep over the codes; a row keeps whatever lost least under the Hessian. lowest_zero: smallest
    zero point, counted from qmin."""

    damping: float = 0.01
    by_activation: bool = True
    scales: ScaleChoice = "signed"
    polish: int = 2
    lowest_zero: int = 0


@dataclass(frozen=True)
class _Pass:
    """codes, dequantized: float32 [out, in]; loss: float32 [out], under the Hessian."""

    grid: Grid
    codes: torch.Tensor
    dequantized: torch.Tensor
    loss: torch.Tensor

    def where(self, other: "_Pass") -> "_Pass":
        """The better of the two passes, row by row: rows do not influence each other."""
        better = (other.loss < self.loss)[:, None]
        return _Pass(
            self.grid.where(better, other.grid),
            torch.where(better, other.codes, self.codes),
            torch.where(better, other.dequantized, self.dequantized),
            torch.where(better[:, 0], other.loss, self.loss),
        )


def gptq(
    weights: Sequence[torch.Tensor],
    hessian: torch.Tensor,
    factored: Factor,
    scheme: IntScheme,
    dtype: ScaleDtype,
    options: GptqOptions,
) -> list[Rounded]:
    """Round each W of `weights` (float32 [out, in]) so that (W - Q) H (W - Q)^T is small.

    hessian: float32 [in, in], mean of x x^T over the calibration tokens, of the input that all of
    them share; factored: the same, damped and factored. The weights go through in one stack.
    """
    stack = torch.cat(list(weights))
    importance, lowest = factored.importance(), options.lowest_zero
    grid = choose_grid(stack, importance, scheme, dtype, options.scales, lowest)
    best = _nearest_pass(stack, hessian, grid, scheme)
    best = best.where(_feedback_pass(stack, hessian, factored, grid, scheme))
    for _ in range(options.polish):
        best = _polish(stack, hessian, best, factored.order, scheme, dtype)
    raised = factored.damping > options.damping
    state = f"damping raised to {factored.damping:g}" if raised else AS_ASKED
    dead = int((hessian.diagonal() == 0).sum())
    results, row = [], 0
    for weight in weights:
        rows = slice(row, row + len(weight))
        part = Grid(best.grid.scale[rows], best.grid.zero[rows])
        tensor = to_quantized_tensor(best.codes[rows], part, scheme, dtype)
        dequantized = best.dequantized[rows]
        errors = relative_errors(weight, dequantized, hessian)
        results.append(Rounded(tensor, dequantized, state, factored.damping, dead, *errors))
        row += len(weight)
    return results


def _polish(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    best: _Pass,
    order: torch.Tensor,
    scheme: IntScheme,
    dtype: ScaleDtype,
) -> _Pass:
    """Scales refitted to the codes, then codes moved to the scales: each row only ever gains."""
    size = scheme.group_size(weight.shape[1])
    grid = refit_grid(weight, best.codes, best.grid, hessian, scheme, dtype)
    best = best.where(_scored(weight, hessian, grid, best.codes, grid.columns(size)))
    wide = best.grid.columns(size)
    codes = sweep_codes(weight, hessian, best.codes, wide, order, scheme)
    return best.where(_scored(weight, hessian, best.grid, codes, wide))


def _nearest_pass(
    weight: torch.Tensor, hessian: torch.Tensor, grid: Grid, scheme: IntScheme
) -> _Pass:
    """No feedback at all: the floor below which no row may fall."""
    wide = grid.columns(scheme.group_size(weight.shape[1]))
    codes = nearest_codes(weight, wide, scheme)
    return _scored(weight, hessian, grid, codes, wide)


def _scored(
    weight: torch.Tensor, hessian: torch.Tensor, grid: Grid, codes: torch.Tensor, wide: Grid
) -> _Pass:
    dequantized = decode(codes, wide)
    return _Pass(grid, codes, dequantized, quadratic_form(weight - dequantized, hessian))


def _feedback_pass(
    weight: torch.Tensor, hessian: torch.Tensor, factored: Factor, grid: Grid, scheme: IntScheme
) -> _Pass:
    """Algorithm 1 on a fixed grid; what comes back is in plain column order.

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
    return _scored(weight, hessian, grid, plain.T.contiguous(), wide)
