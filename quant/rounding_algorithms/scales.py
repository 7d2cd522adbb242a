"""Scales and zero points of integers, chosen by weighted error rather than by the largest
magnitude."""

import torch

from quant.format.scheme import IntScheme, PerTensor, QuantizedScheme
from quant.kernels import _rounding
from quant.rounding_algorithms.grid import (
    Grid,
    ScaleDtype,
    decode,
    nearest_levels,
    scale_limits,
    stored_scale,
)

_SHRINKS = [1.0 - step / 48 for step in range(25)]
_REFIT_ROUNDS = 3


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
    rows, groups, _ = grouped(weight, scheme).shape
    scale, zero = torch.empty(rows, groups), torch.empty(rows, groups)
    kept_bits, smallest, largest = scale_limits(dtype)
    _rounding.search(
        weight.contiguous().numpy(),
        importance.contiguous().numpy(),
        scheme.qmin,
        scheme.qmax,
        scheme.symmetric,
        signed and scheme.symmetric,
        lowest_zero,
        kept_bits,
        smallest,
        largest,
        _SHRINKS,
        _REFIT_ROUNDS,
        scale.numpy(),
        zero.numpy(),
    )
    return Grid(scale, zero)


def group_error(
    groups: torch.Tensor, h: torch.Tensor, grid: Grid, scheme: QuantizedScheme
) -> torch.Tensor:
    """float32 [out, groups]: sum of h * (weight - nearest)**2 of groups [out, groups, size]."""
    wide = Grid(grid.scale[..., None], grid.zero[..., None])
    difference = decode(nearest_levels(groups, wide, scheme), wide).sub_(groups)
    return difference.square_().mul_(h).sum(-1)
