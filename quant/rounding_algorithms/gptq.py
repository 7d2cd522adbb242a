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
from quant.rounding_algorithms.feedback import feedback_levels
from quant.rounding_algorithms.grid import Grid, ScaleDtype, decode_on, joined, nearest_on
from quant.rounding_algorithms.refit import can_refit, refit_grid
from quant.rounding_algorithms.result import (
    AS_ASKED,
    Losses,
    Rounded,
    losses_of,
    quadratic_form,
    split_rows,
)
from quant.rounding_algorithms.rtn import choose_grid, rows_share_scales
from quant.rounding_algorithms.sweep import sweep_levels
from quant.rounding_algorithms.walk import Walk, permuted
from quant.tasks import ScaleChoice
from quant.workers import Workers, run_jobs

_ROW_CHUNK = 512


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
    """levels, dequantized, product: float32 [out, in], the last (W - Q) H; loss: float32 [out],
    (W - Q) H (W - Q)^T."""

    grid: Grid
    levels: torch.Tensor
    dequantized: torch.Tensor
    product: torch.Tensor
    loss: torch.Tensor

    def where(self, other: "_Pass") -> "_Pass":
        """The better of the two passes, row by row: rows do not influence each other."""
        better = other.loss < self.loss
        kept = torch.nonzero(~better)[:, 0]

        def chosen(ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
            return theirs.index_copy(0, kept, ours.index_select(0, kept)) if len(kept) else theirs

        return _Pass(
            self.grid.where(better[:, None], other.grid),
            chosen(self.levels, other.levels),
            chosen(self.dequantized, other.dequantized),
            chosen(self.product, other.product),
            chosen(self.loss, other.loss),
        )


@dataclass(frozen=True)
class _Done:
    """The pass that is kept, and what it loses of the original."""

    grid: Grid
    levels: torch.Tensor
    dequantized: torch.Tensor
    losses: Losses


def gptq(
    weights: Sequence[torch.Tensor],
    hessian: torch.Tensor,
    factored: Factor,
    scheme: QuantizedScheme,
    dtype: ScaleDtype,
    options: GptqOptions,
    workers: Workers | None = None,
    originals: Sequence[torch.Tensor] | None = None,
    starts: Sequence[torch.Tensor] | None = None,
) -> list[Rounded]:
    """Round each W of `weights` (float32 [out, in]) so that (W - Q) H (W - Q)^T is small.

    hessian: float32 [in, in], mean of x x^T over the calibration tokens, of the input that all of
    them share; factored: the same, damped and factored. The weights go through in one stack.
    originals: what errors are reported against, where `weights` are other targets than these; to
    round them to nearest is then tried, too. starts: what feedback begins at instead of `weights`.
    """
    stack = torch.cat(list(weights))
    others = [
        None if given is None or given is weights else torch.cat(list(given))
        for given in (originals, starts)
    ]
    visited = permuted(hessian, factored.order)
    rounding = _Rounding(hessian, visited, factored, scheme, dtype, options)
    shared = None
    if rows_share_scales(scheme):
        shared = rounding.choose_grid(stack)
    jobs = [
        partial(
            rounding.run,
            stack[rows],
            None if shared is None else shared.rows(rows),
            *(None if other is None else other[rows] for other in others),
        )
        for rows in _row_chunks(len(stack))
    ]
    done = _joined(run_jobs(jobs, workers))
    raised = factored.damping > options.damping
    state = f"damping raised to {factored.damping:g}" if raised else AS_ASKED
    return split_rows(
        originals or weights,
        done.grid,
        done.levels,
        done.dequantized,
        scheme,
        dtype,
        hessian,
        state,
        factored,
        done.losses,
    )


def _row_chunks(rows: int) -> list[slice]:
    """Equal parts of at most `_ROW_CHUNK` rows, an even number of them, so that two threads end
    together: rows do not influence each other."""
    count = 2 * max(1, -(-rows // (2 * _ROW_CHUNK)))
    size = -(-rows // count)
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


@dataclass(frozen=True)
class _Rounding:
    """What the rows of a stack have in common. visited: the Hessian in visiting order."""

    hessian: torch.Tensor
    visited: torch.Tensor
    factored: Factor
    scheme: QuantizedScheme
    dtype: ScaleDtype
    options: GptqOptions

    def choose_grid(self, weight: torch.Tensor) -> Grid:
        options, importance = self.options, self.factored.importance()
        return choose_grid(
            weight, importance, self.scheme, self.dtype, options.scales, options.lowest_zero
        )

    def run(
        self,
        weight: torch.Tensor,
        grid: Grid | None,
        original: torch.Tensor | None = None,
        start: torch.Tensor | None = None,
    ) -> _Done:
        """The best that was found for `weight`, and what it loses of the original."""
        grid = self.choose_grid(weight) if grid is None else grid
        walk = Walk.over(grid, self.scheme, self.factored.order)
        levels = feedback_levels(weight if start is None else start, self.factored, walk)
        best = self.scored(weight, grid, levels)
        for target in (weight,) if original is None else (weight, original):
            best = self.at_least_nearest(weight, target, best)
        for _ in range(self.options.polish):
            best = self.polish(weight, best)
        if original is None:
            losses = best.loss, quadratic_form(weight, self.hessian)
        else:
            losses = losses_of(original, best.dequantized, self.hessian)
        return _Done(best.grid, best.levels, best.dequantized, losses)

    def at_least_nearest(self, weight: torch.Tensor, target: torch.Tensor, best: _Pass) -> _Pass:
        """`best`, but rows that lose less with `target` rounded to nearest have that instead."""
        levels = nearest_on(target, best.grid, self.scheme)
        lost = weight - decode_on(levels, best.grid, self.scheme)
        if bool((best.loss < quadratic_form(lost, self.hessian)).all()):
            return best
        return self.scored(weight, best.grid, levels).where(best)

    def polish(self, weight: torch.Tensor, best: _Pass) -> _Pass:
        """Scales refitted to the codes, then codes moved to them: each row only ever gains."""
        hessian, scheme = self.hessian, self.scheme
        if can_refit(scheme):
            grid = refit_grid(
                weight, best.levels, best.grid, best.product, hessian, scheme, self.dtype
            )
            best = best.where(self.scored(weight, grid, best.levels))
        walk = Walk.over(best.grid, scheme, self.factored.order)
        levels, product = sweep_levels(best.levels, best.product, self.visited, walk)
        return best.where(self.scored(weight, best.grid, levels, product))

    def scored(
        self,
        weight: torch.Tensor,
        grid: Grid,
        levels: torch.Tensor,
        product: torch.Tensor | None = None,
    ) -> _Pass:
        """What `levels` on `grid` lose; `product` where it is known."""
        dequantized = decode_on(levels, grid, self.scheme)
        lost = weight - dequantized
        product = lost @ self.hessian if product is None else product
        return _Pass(grid, levels, dequantized, product, (lost * product).sum(-1))


def _joined(parts: Sequence[_Done]) -> _Done:
    return _Done(
        joined([part.grid for part in parts]),
        torch.cat([part.levels for part in parts]),
        torch.cat([part.dequantized for part in parts]),
        (
            torch.cat([part.losses[0] for part in parts]),
            torch.cat([part.losses[1] for part in parts]),
        ),
    )
