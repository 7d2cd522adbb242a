"""Scales and zero points of integers, chosen by weighted error rather than by the largest
magnitude."""

import torch

from quant.format.scheme import IntScheme, PerTensor, QuantizedScheme
from quant.rounding_algorithms.grid import (
    Grid,
    ScaleDtype,
    decode,
    joined,
    nearest_levels,
    stored_scale,
)

_SHRINK_STEPS = 25
_SMALLEST_SHRINK = 0.5
_REFIT_ROUNDS = 3
_CHUNK_ELEMENTS = 1 << 18
"""Rows are searched in chunks whose temporaries stay in a processor's cache."""


def grouped(weight: torch.Tensor, scheme: QuantizedScheme) -> torch.Tensor:
    """weight [out, in] as [out, groups, group_size]. The group size must divide the row."""
    rows, columns = weight.shape
    size = scheme.group_size(columns)
    assert columns % size == 0, f"group size {size} does not divide {columns} columns"
    return weight.reshape(rows, columns // size, size)


def full_range_grid(
    weight: torch.Tensor,
    scheme: IntScheme,
    dtype: ScaleDtype,
    shrink: float = 1.0,
    lowest_zero: int = 0,
) -> Grid:
    """The grid that spans `shrink` of each group's range.

    Symmetric: nothing is clipped at 1.0. Asymmetric: the range is widened to include zero, so that
    zero stays exact, and so far below it that the zero point is at least qmin + lowest_zero.
    """
    groups = grouped(weight, scheme)
    if scheme.symmetric:
        scale = stored_scale(groups.abs().amax(-1) * (shrink / scheme.qmax), dtype)
        return Grid(scale, torch.zeros_like(scale))
    low = groups.amin(-1).clamp(max=0.0)
    high = groups.amax(-1).clamp(min=0.0)
    steps = scheme.qmax - scheme.qmin
    if lowest_zero:
        low = torch.minimum(low, high * (-lowest_zero / (steps - lowest_zero)))
    scale = stored_scale((high - low) * (shrink / steps), dtype)
    zero = torch.round(scheme.qmin - shrink * low / scale)
    return Grid(scale, zero.clamp_(scheme.qmin + lowest_zero, scheme.qmax))


def one_grid(weight: torch.Tensor, scheme: IntScheme, dtype: ScaleDtype) -> Grid:
    """The grid of a whole tensor, repeated for each row: nothing is clipped."""
    assert isinstance(scheme.granularity, PerTensor)
    grid = full_range_grid(weight.reshape(1, -1), scheme, dtype)
    return Grid(grid.scale.expand(len(weight), 1), grid.zero.expand(len(weight), 1))


def search_grid(
    weight: torch.Tensor,
    importance: torch.Tensor,
    scheme: IntScheme,
    dtype: ScaleDtype,
    signed: bool = False,
    lowest_zero: int = 0,
) -> Grid:
    """The grid of least error sum(importance * (weight - rounded)**2), per group.

    weight: float32 [out, in]; importance: float32 [in], not negative. Shrink factors are tried from
    1 downwards, then codes and scale are refined in turn (weighted least squares). With `signed`, a
    symmetric scheme tries negative scales as well. Only a strict improvement replaces a grid, so
    ties keep the largest scale and the result is deterministic.
    """
    rows = max(1, _CHUNK_ELEMENTS // weight.shape[1])
    parts = []
    for part in torch.split(weight, rows):
        grid, error = _search_rows(part, importance, scheme, dtype, lowest_zero)
        if signed and scheme.symmetric:
            mirrored, mirrored_error = _search_rows(-part, importance, scheme, dtype)
            negative = Grid(-mirrored.scale, mirrored.zero)
            grid = grid.where(mirrored_error < error, negative)
        parts.append(grid)
    return joined(parts)


def _search_rows(
    weight: torch.Tensor,
    importance: torch.Tensor,
    scheme: IntScheme,
    dtype: ScaleDtype,
    lowest_zero: int = 0,
) -> tuple[Grid, torch.Tensor]:
    groups = grouped(weight, scheme)
    h = grouped(importance[None, :], scheme)
    best = full_range_grid(weight, scheme, dtype, lowest_zero=lowest_zero)
    best_error = group_error(groups, h, best, scheme)
    for step in range(1, _SHRINK_STEPS):
        shrink = 1.0 - (1.0 - _SMALLEST_SHRINK) * step / (_SHRINK_STEPS - 1)
        candidate = full_range_grid(weight, scheme, dtype, shrink, lowest_zero)
        best, best_error = keep_better(groups, h, scheme, best, best_error, candidate)
    for _ in range(_REFIT_ROUNDS):
        candidate = _least_squares_grid(groups, h, best, scheme, dtype)
        best, best_error = keep_better(groups, h, scheme, best, best_error, candidate)
        if not scheme.symmetric:
            for shift in (-1.0, 1.0):
                zero = (best.zero + shift).clamp_(scheme.qmin + lowest_zero, scheme.qmax)
                candidate = _least_squares_grid(groups, h, Grid(best.scale, zero), scheme, dtype)
                best, best_error = keep_better(groups, h, scheme, best, best_error, candidate)
    return best, best_error


def keep_better(
    groups: torch.Tensor,
    h: torch.Tensor,
    scheme: QuantizedScheme,
    best: Grid,
    best_error: torch.Tensor,
    candidate: Grid,
) -> tuple[Grid, torch.Tensor]:
    """The better grid of each group, and its error [out, groups]."""
    error = group_error(groups, h, candidate, scheme)
    better = error < best_error
    return best.where(better, candidate), torch.where(better, error, best_error)


def group_error(
    groups: torch.Tensor, h: torch.Tensor, grid: Grid, scheme: QuantizedScheme
) -> torch.Tensor:
    """float32 [out, groups]: sum of h * (weight - nearest)**2 of groups [out, groups, size]."""
    wide = Grid(grid.scale[..., None], grid.zero[..., None])
    difference = decode(nearest_levels(groups, wide, scheme), wide).sub_(groups)
    return difference.square_().mul_(h).sum(-1)


def _least_squares_grid(
    groups: torch.Tensor, h: torch.Tensor, grid: Grid, scheme: IntScheme, dtype: ScaleDtype
) -> Grid:
    """The best scale for the codes that `grid` gives: sum(h*w*c) / sum(h*c*c), c = code - zero."""
    wide = Grid(grid.scale[..., None], grid.zero[..., None])
    steps = nearest_levels(groups, wide, scheme).sub_(wide.zero)
    weighted = steps * h
    norm = (weighted * steps).sum(-1)
    scale = (weighted * groups).sum(-1) / torch.where(norm > 0, norm, torch.ones_like(norm))
    return Grid(stored_scale(torch.where(scale > 0, scale, grid.scale), dtype), grid.zero)
