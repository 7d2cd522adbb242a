"""The grid a weight is rounded to: one scale, and for some schemes one zero point, per group.

Every algorithm rounds through this module, and only with scales exactly as they will be stored, so
that the error it compensates is the error that the reader of the file gets. A level is the number
that a code stands for before it is scaled: the code itself for integers, the value of a codebook.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch

from quant.format.ggml_grid import BlockGrid
from quant.format.gguf_types import TYPE_BY_NAME
from quant.format.rounding import dequantize_codes
from quant.format.scheme import IntScheme, PerBlock, PerTensor, QuantizedScheme
from quant.format.tensor import FloatArray, QuantizedTensor
from quant.rounding_algorithms.levels import level_codes, snap
from quant.tasks import FloatDtype

ScaleDtype = FloatDtype
NO_PARTS: Mapping[str, torch.Tensor] = MappingProxyType({})

_TORCH: dict[ScaleDtype, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_NUMPY: dict[str, npt.DTypeLike] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "e4m3": ml_dtypes.float8_e4m3fn,
    "e8m0": ml_dtypes.float8_e8m0fnu,
}


@dataclass(frozen=True)
class Grid:
    """scale, zero: float32 [out, groups]; a value is (level - zero) * scale.

    `zero` is all 0 for symmetric schemes, whole for integers with a zero point, and any number for
    types with a minimum. A scale may be negative: 4 bits hold codes from -8 to 7, and a sign puts
    the eighth step on the side of the group's largest weight.
    parts: what the container needs beside them, each [out, ...].
    """

    scale: torch.Tensor
    zero: torch.Tensor
    parts: Mapping[str, torch.Tensor] = field(default_factory=lambda: NO_PARTS)

    def where(self, better: torch.Tensor, other: "Grid") -> "Grid":
        """`other` where `better` (bool [out, 1], or [out, groups] without parts) holds, else this
        one."""
        assert not self.parts or better.shape[1] == 1, "parts belong to whole rows"
        parts = {
            name: torch.where(_as_wide(better, part), other.parts[name], part)
            for name, part in self.parts.items()
        }
        return Grid(
            torch.where(better, other.scale, self.scale),
            torch.where(better, other.zero, self.zero),
            parts,
        )

    def rows(self, rows: slice) -> "Grid":
        """The grid of some rows."""
        parts = {name: part[rows] for name, part in self.parts.items()}
        return Grid(self.scale[rows], self.zero[rows], parts)

    def columns(self, scheme: QuantizedScheme, count: int) -> "Grid":
        """The grid of each of `count` columns: scale and zero [out, count], without parts."""
        size = scheme.group_size(count)
        return Grid(
            self.scale.repeat_interleave(size, dim=1)[:, :count],
            self.zero.repeat_interleave(size, dim=1)[:, :count],
        )


def joined(grids: "list[Grid]") -> Grid:
    """The grids of consecutive rows as one."""
    parts = {name: torch.cat([g.parts[name] for g in grids]) for name in grids[0].parts}
    return Grid(torch.cat([g.scale for g in grids]), torch.cat([g.zero for g in grids]), parts)


def stored_scale(scale: torch.Tensor, dtype: ScaleDtype) -> torch.Tensor:
    """`scale` as float32 after a round trip through its stored dtype, usable as a divisor.

    Zeros (groups of zeros) become 1; others are kept within the dtype's normal range, since
    readers may flush subnormals and a scale rounded to 0 or infinity loses the whole group.
    """
    limits = torch.finfo(_TORCH[dtype])
    bounded = scale.float().abs().clamp(min=limits.tiny, max=limits.max)
    rounded = bounded.to(_TORCH[dtype]).float() * scale.sign()
    return torch.where(scale == 0, torch.ones_like(rounded), rounded)


def scale_limits(dtype: ScaleDtype) -> tuple[int, float, float]:
    """(bits of the mantissa, smallest, largest) of the scales that `stored_scale` gives."""
    limits = torch.finfo(_TORCH[dtype])
    return -round(math.log2(limits.eps)), limits.tiny, limits.max


def nearest_levels(weight: torch.Tensor, grid: Grid, scheme: QuantizedScheme) -> torch.Tensor:
    """Levels nearest to `weight`, ties to even. `grid` must broadcast against `weight`."""
    return snap(weight / grid.scale + grid.zero, scheme)


def decode(levels: torch.Tensor, grid: Grid) -> torch.Tensor:
    """(level - zero) * scale. `grid` must broadcast against `levels`."""
    return dequantize_codes(levels, grid.scale, grid.zero)


def nearest_on(weight: torch.Tensor, grid: Grid, scheme: QuantizedScheme) -> torch.Tensor:
    """Levels nearest to `weight` [out, in] on `grid` [out, groups]."""
    groups, wide = by_group(weight, grid, scheme)
    return nearest_levels(groups, wide, scheme).reshape(weight.shape)


def decode_on(levels: torch.Tensor, grid: Grid, scheme: QuantizedScheme) -> torch.Tensor:
    """What `levels` [out, in] are worth on `grid` [out, groups]."""
    groups, wide = by_group(levels, grid, scheme)
    return decode(groups, wide).reshape(levels.shape)


def by_group(rows: torch.Tensor, grid: Grid, scheme: QuantizedScheme) -> tuple[torch.Tensor, Grid]:
    """`rows` [out, in] and `grid` [out, groups] so that they broadcast against each other: rows as
    [out, groups, size], unless a group is short."""
    count = rows.shape[1]
    size = scheme.group_size(count)
    if count % size:
        return rows, grid.columns(scheme, count)
    groups = rows.reshape(len(rows), count // size, size)
    return groups, Grid(grid.scale[..., None], grid.zero[..., None])


def to_quantized_tensor(
    levels: torch.Tensor, grid: Grid, scheme: QuantizedScheme, dtype: ScaleDtype
) -> QuantizedTensor:
    """The canonical form of float levels [out, in] on `grid` [out, groups].

    `dtype` is that of the scales where the scheme leaves it open.
    """
    codes = level_codes(levels, scheme)
    if scheme.ggml_type is not None:
        parts = {name: part.numpy() for name, part in grid.parts.items()}
        return BlockGrid(TYPE_BY_NAME[scheme.ggml_type], **parts).tensor(codes)
    if isinstance(scheme, IntScheme):
        scale: FloatArray = grid.scale.numpy().astype(_NUMPY[dtype])
        zero = None if scheme.symmetric else grid.zero.numpy().astype(np.int8)
        return QuantizedTensor(scheme, codes, _shared(scale, scheme), zero)
    if scheme.scales == "float":
        return QuantizedTensor(scheme, codes, _shared(grid.scale.numpy(), scheme))
    if scheme.scales == "e8m0":
        return QuantizedTensor(scheme, codes, grid.scale.numpy().astype(_NUMPY["e8m0"]))
    divisor = float(grid.parts["global_scale"][0, 0])
    scale = (grid.parts["block_scale"].numpy()).astype(_NUMPY["e4m3"])
    return QuantizedTensor(scheme, codes, scale, global_scale=divisor)


def _shared(scale: FloatArray, scheme: QuantizedScheme) -> FloatArray:
    """Scales that rows share, once."""
    if isinstance(scheme.granularity, PerBlock):
        return np.ascontiguousarray(scale[:: scheme.granularity.rows])
    return scale[:1] if isinstance(scheme.granularity, PerTensor) else scale


def _as_wide(better: torch.Tensor, part: torch.Tensor) -> torch.Tensor:
    return better.reshape(len(better), *[1] * (part.ndim - 1))
