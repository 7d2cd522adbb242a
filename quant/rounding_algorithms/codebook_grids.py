"""Scales of codebooks: 8-bit floats, NVFP4 and the MX formats.

Sources: OCP "Microscaling Formats (MX) Specification" v1.0 (shared exponents); NVFP4 as
compressed-tensors stores it: e4m3 scales per 16 columns under one float32 per tensor.
"""

from collections.abc import Callable

import torch

from quant.format.codebooks import LARGEST
from quant.format.scheme import CodebookScheme, PerBlock, PerTensor
from quant.rounding_algorithms.grid import Grid
from quant.rounding_algorithms.scales import group_error

_Reduce = Callable[[torch.Tensor], torch.Tensor]

_LARGEST_E4M3 = 448.0
_SMALLEST_E4M3 = 2.0**-9
_FLOAT_FACTORS = tuple(2.0 ** (-j / 8) for j in (1, 2, 3, 4, -1, -2, -3, -4))
"""Floats look alike an octave on: within one, a scale only shifts where their steps fall."""
_E4M3_SHIFTS = (1, 2, 3, 4, 5, 6, -1, -2, -3, -4, -5)
"""Steps of three mantissa bits from the scale that clips nothing: 0.6 to 1.7 times."""


def codebook_grid(
    weight: torch.Tensor, importance: torch.Tensor, scheme: CodebookScheme, search: bool
) -> Grid:
    """The grid [out, groups] of a weight [out, in], float32: the scales that clip nothing, or with
    `search` those near them of least sum(importance * (weight - nearest)**2).

    importance: float32 [in]. Rows of a PerBlock or PerTensor scheme come back with equal scales.
    """
    groups = _padded_groups(weight, scheme)
    h = _padded_groups(importance[None, :], scheme)
    first, *others = _candidates(_shared_absmax(groups, scheme), scheme, search)
    best, best_error = first, _error(groups, h, first, scheme)
    for candidate in others:
        error = _error(groups, h, candidate, scheme)
        better = error < best_error
        best = torch.where(better, candidate, best)
        best_error = torch.where(better, error, best_error)
    return _as_grid(best, weight, scheme)


def _candidates(absmax: torch.Tensor, scheme: CodebookScheme, search: bool) -> list[torch.Tensor]:
    """Stored scales [out, groups] as float32, the one that clips nothing first."""
    largest = LARGEST[scheme.codebook]
    if scheme.scales == "float":
        scale = torch.where(absmax > 0, absmax / largest, torch.ones_like(absmax))
        limits = torch.finfo(torch.bfloat16)
        scales = [scale, *(scale * f for f in _FLOAT_FACTORS)] if search else [scale]
        # Readers that compute in bfloat16 round scales to it: these are exact in both.
        return [s.clamp(limits.tiny, limits.max).bfloat16().float() for s in scales]
    if scheme.scales == "e8m0":
        ratio = torch.where(absmax > 0, absmax / largest, torch.ones_like(absmax))
        exponent = torch.ceil(torch.log2(ratio))
        exponent += torch.exp2(exponent) < ratio
        around = (0, -1, 1) if search else (0,)
        return [torch.exp2((exponent + s).clamp(-127, 127)) for s in around]
    ideal = (absmax / largest * nvfp4_divisor(absmax)).clamp(_SMALLEST_E4M3, _LARGEST_E4M3)
    codes = ideal.to(torch.float8_e4m3fn).view(torch.uint8).to(torch.int16)
    shifts = (0, *_E4M3_SHIFTS) if search else (0,)
    stored = [(codes + s).clamp(1, 126).to(torch.uint8) for s in shifts]
    return [s.view(torch.float8_e4m3fn).float() for s in stored]


def nvfp4_divisor(absmax: torch.Tensor) -> torch.Tensor:
    """float32 scalar: what NVFP4's e4m3 scales are divided by, so that the largest group of the
    tensor has the largest scale. absmax: of each group."""
    most = absmax.max()
    largest = _LARGEST_E4M3 * LARGEST["e2m1"]
    return torch.where(most > 0, largest / most, torch.ones_like(most)).clamp(max=1e30)


def _as_grid(stored: torch.Tensor, weight: torch.Tensor, scheme: CodebookScheme) -> Grid:
    zero = torch.zeros_like(stored)
    if scheme.scales != "e4m3":
        return Grid(stored, zero)
    divisor = nvfp4_divisor(weight.abs().max())
    parts = {"block_scale": stored, "global_scale": divisor.expand(len(stored), 1)}
    return Grid(stored / divisor, zero, parts)


def _error(
    groups: torch.Tensor, h: torch.Tensor, stored: torch.Tensor, scheme: CodebookScheme
) -> torch.Tensor:
    scale = stored
    if scheme.scales == "e4m3":
        scale = stored / nvfp4_divisor(groups.abs().amax(-1))
    error = group_error(groups, h, Grid(scale, torch.zeros_like(scale)), scheme)
    return _over_shared_rows(error, scheme, lambda part: part.sum(0, True))


def _shared_absmax(groups: torch.Tensor, scheme: CodebookScheme) -> torch.Tensor:
    return _over_shared_rows(groups.abs().amax(-1), scheme, lambda part: part.amax(0, True))


def _over_shared_rows(
    values: torch.Tensor, scheme: CodebookScheme, reduce: _Reduce
) -> torch.Tensor:
    """`values` [out, groups], reduced over the rows that share a scale and repeated for each."""
    rows = 1
    if isinstance(scheme.granularity, PerTensor):
        rows = len(values)
    elif isinstance(scheme.granularity, PerBlock):
        rows = scheme.granularity.rows
    if rows == 1:
        return values
    parts = torch.tensor_split(values, tuple(range(rows, len(values), rows)))
    return torch.cat([reduce(part).expand_as(part) for part in parts])


def _padded_groups(weight: torch.Tensor, scheme: CodebookScheme) -> torch.Tensor:
    """[out, in] as [out, groups, size]; a short last group is filled up with zeros."""
    rows, columns = weight.shape
    size, groups = scheme.group_size(columns), scheme.groups(columns)
    padded = torch.nn.functional.pad(weight, (0, groups * size - columns))
    return padded.reshape(rows, groups, size)
