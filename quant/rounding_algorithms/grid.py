"""The grid a weight is rounded to: one scale, and for asymmetric schemes one zero point, per group.

Every algorithm rounds through this module, and only with scales exactly as they will be stored, so
that the error it compensates is the error that the reader of the file gets.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt
import torch

from quant.format.rounding import dequantize_codes, quantize_codes
from quant.format.scheme import IntScheme
from quant.format.tensor import FloatArray, QuantizedTensor
from quant.tasks import FloatDtype

ScaleDtype = FloatDtype

_TORCH: dict[ScaleDtype, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
_NUMPY: dict[ScaleDtype, npt.DTypeLike] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}


@dataclass(frozen=True)
class Grid:
    """scale, zero: float32 [out, groups]; `zero` holds whole numbers, all 0 when symmetric.

    A scale may be negative: 4 bits hold codes from -8 to 7, and a sign puts the eighth step on the
    side of the group's largest weight.
    """

    scale: torch.Tensor
    zero: torch.Tensor

    def where(self, better: torch.Tensor, other: "Grid") -> "Grid":
        """`other` where `better` (bool, broadcastable to [out, groups]) holds, else this one."""
        return Grid(
            torch.where(better, other.scale, self.scale), torch.where(better, other.zero, self.zero)
        )

    def columns(self, group_size: int) -> "Grid":
        """The grid of each column: scale and zero [out, in]."""
        return Grid(
            self.scale.repeat_interleave(group_size, dim=1),
            self.zero.repeat_interleave(group_size, dim=1),
        )


def stored_scale(scale: torch.Tensor, dtype: ScaleDtype) -> torch.Tensor:
    """`scale` as float32 after a round trip through its stored dtype, usable as a divisor.

    Zeros (groups of zeros) become 1; others are kept within the dtype's normal range, since
    readers may flush subnormals and a scale rounded to 0 or infinity loses the whole group.
    """
    limits = torch.finfo(_TORCH[dtype])
    bounded = scale.float().abs().clamp(min=limits.tiny, max=limits.max)
    rounded = bounded.to(_TORCH[dtype]).float() * scale.sign()
    return torch.where(scale == 0, torch.ones_like(rounded), rounded)


def nearest_codes(weight: torch.Tensor, grid: Grid, scheme: IntScheme) -> torch.Tensor:
    """Codes nearest to `weight`, ties to even. `grid` must broadcast against `weight`."""
    zero = None if scheme.symmetric else grid.zero
    return quantize_codes(weight, grid.scale, zero, scheme.qmin, scheme.qmax)


def decode(codes: torch.Tensor, grid: Grid) -> torch.Tensor:
    """(code - zero) * scale. `grid` must broadcast against `codes`."""
    return dequantize_codes(codes, grid.scale, grid.zero)


def to_quantized_tensor(
    codes: torch.Tensor, grid: Grid, scheme: IntScheme, dtype: ScaleDtype
) -> QuantizedTensor:
    """The canonical form of float codes [out, in] on `grid` [out, groups]."""
    scale: FloatArray = grid.scale.numpy().astype(_NUMPY[dtype])
    zero = None if scheme.symmetric else grid.zero.numpy().astype(np.int8)
    return QuantizedTensor(scheme, codes.numpy().astype(np.int8), scale, zero)
