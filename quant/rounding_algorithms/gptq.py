"""GPTQ: round column by column, and let later columns make up for each column's error.

Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers" (ICLR 2023), algorithm 1; static groups keep the plain layout in any visiting order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch

from quant.format.scheme import QuantizedScheme
from quant.rounding_algorithms.factor import Factor
from quant.rounding_algorithms.grid import Grid, ScaleDtype, decode, joined, nearest_levels
from quant.rounding_algorithms.levels import snap
from quant.rounding_algorithms.refit import can_refit, refit_grid
from quant.rounding_algorithms.result import AS_ASKED, Rounded, quadratic_form, split_rows
from quant.rounding_algorithms.rtn import choose_grid, rows_share_scales
from quant.rounding_algorithms.sweep import sweep_levels
from quant.tasks import ScaleChoice
from quant.workers import Workers

_COLUMN_CHUNK = 128
_ROW_CHUNK = 1024


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
    """levels, dequantized: float32 [out, in]; loss: float32 [out], under the Hessian."""

    grid: Grid
    levels: torch.Tensor
    dequantized: torch.Tensor
    loss: torch.Tensor

    def where(self, other: "_Pass") -> "_Pass":
        """The better of the two passes, row by row: rows do not influence each other."""
        better = (other.loss < self.loss)[:, None]
        return _Pass(
            self.grid.where(better, other.grid),
            torch.where(better, other.levels, self.levels),
            torch.where(better, other.dequantized, self.dequantized),
            torch.where(better[:, 0], other.loss, self.loss),
        )


def gptq(
    weights: Sequence[torch.Tensor],
    hessian: torch.Tensor,
    factored: Factor,
    scheme: QuantizedScheme,
    dtype: ScaleDtype,
    options: GptqOptions,
    workers: Workers | None = None,
    originals: Sequence[torch.Tensor] | None = None,
) -> list[Rounded]:
    """Round each W of `weights` (float32 [out, in]) so that (W - Q) H (W - Q)^T is small.

    hessian: float32 [in, in], mean of x x^T over the calibration tokens, of the input that all of
    them share; factored: the same, damped and factored. The weights go through in one stack.
    originals: what errors are reported against, where `weights` are other targets than these.
    """
    stack = torch.cat(list(weights))
    rounding = _Rounding(hessian, factored, scheme, dtype, options)
    shared = None
    if rows_share_scales(scheme):
        shared = rounding.choose_grid(stack)
    jobs = [
        partial(rounding.run, stack[rows], None if shared is None else shared.rows(rows))
        for rows in _row_chunks(len(stack))
    ]
    best = _joined(workers.run(jobs) if workers else [job() for job in jobs])
    raised = factored.damping > options.damping
    state = f"damping raised to {factored.damping:g}" if raised else AS_ASKED
    return split_rows(
        originals or weights,
        best.grid,
        best.levels,
        best.dequantized,
        scheme,
        dtype,
        hessian,
        state,
        factored,
    )


def _row_chunks(rows: int) -> list[slice]:
    """Equal parts of at most `_ROW_CHUNK` rows, at least two: rows do not influence each other."""
    count = max(2, -(-rows // _ROW_CHUNK))
    size = -(-rows // count)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


@dataclass(frozen=True)
class _Rounding:
    """What the rows of a stack have in common."""

    hessian: torch.Tensor
    factored: Factor
    scheme: QuantizedScheme
    dtype: ScaleDtype
    options: GptqOptions

    def choose_grid(self, weight: torch.Tensor) -> Grid:
        options, importance = self.options, self.factored.importance()
        return choose_grid(
            weight, importance, self.scheme, self.dtype, options.scales, options.lowest_zero
        )

    def run(self, weight: torch.Tensor, grid: Grid | None) -> _Pass:
        grid = self.choose_grid(weight) if grid is None else grid
        best = _nearest_pass(weight, self.hessian, grid, self.scheme)
        best = best.where(_feedback_pass(weight, self.hessian, self.factored, grid, self.scheme))
        order = self.factored.order
        for _ in range(self.options.polish):
            best = _polish(weight, self.hessian, best, order, self.scheme, self.dtype)
        return best


def _joined(passes: Sequence[_Pass]) -> _Pass:
    return _Pass(
        joined([p.grid for p in passes]),
        torch.cat([p.levels for p in passes]),
        torch.cat([p.dequantized for p in passes]),
        torch.cat([p.loss for p in passes]),
    )


def _polish(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    best: _Pass,
    order: torch.Tensor,
    scheme: QuantizedScheme,
    dtype: ScaleDtype,
) -> _Pass:
    """Scales refitted to the codes, then codes moved to the scales: each row only ever gains."""
    if can_refit(scheme):
        grid = refit_grid(weight, best.levels, best.grid, hessian, scheme, dtype)
        best = best.where(_scored(weight, hessian, grid, best.levels, scheme))
    wide = best.grid.columns(scheme, weight.shape[1])
    levels = sweep_levels(weight, hessian, best.levels, wide, order, scheme)
    return best.where(_scored(weight, hessian, best.grid, levels, scheme))


def _nearest_pass(
    weight: torch.Tensor, hessian: torch.Tensor, grid: Grid, scheme: QuantizedScheme
) -> _Pass:
    """No feedback at all: the floor below which no row may fall."""
    levels = nearest_levels(weight, grid.columns(scheme, weight.shape[1]), scheme)
    return _scored(weight, hessian, grid, levels, scheme)


def _scored(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    grid: Grid,
    levels: torch.Tensor,
    scheme: QuantizedScheme,
) -> _Pass:
    dequantized = decode(levels, grid.columns(scheme, weight.shape[1]))
    return _Pass(grid, levels, dequantized, quadratic_form(weight - dequantized, hessian))


def _feedback_pass(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    factored: Factor,
    grid: Grid,
    scheme: QuantizedScheme,
) -> _Pass:
    """Algorithm 1 on a fixed grid; what comes back is in plain column order.

    Works on the transpose, so that the column in hand is contiguous. Inside a chunk each error is
    spread at once; columns beyond it get the whole chunk's errors in one product.
    """
    order, upper = factored.order, factored.upper
    wide = grid.columns(scheme, weight.shape[1])
    left = weight.T[order].contiguous()
    scale = wide.scale.T[order].contiguous()
    zero = wide.zero.T[order].contiguous()
    levels = torch.empty_like(left)
    for start in range(0, len(left), _COLUMN_CHUNK):
        stop = min(start + _COLUMN_CHUNK, len(left))
        errors = torch.empty_like(left[start:stop])
        for j in range(start, stop):
            q = snap(left[j] / scale[j] + zero[j], scheme)
            levels[j] = q
            error = left[j] - (q - zero[j]) * scale[j]
            error /= upper[j, j]
            errors[j - start] = error
            left[j + 1 : stop].addr_(upper[j, j + 1 : stop], error, alpha=-1.0)
        left[stop:].addmm_(upper[start:stop, stop:].T, errors, alpha=-1.0)
    plain = torch.empty_like(levels)
    plain[order] = levels
    return _scored(weight, hessian, grid, plain.T.contiguous(), scheme)
