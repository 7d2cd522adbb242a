"""How scales of 8- and 4-bit floats follow from a largest magnitude, and rounding to those floats.

`fp8_scale` and `snap_e2m1` work on numpy arrays and torch tensors alike. What ends in a type that
torch and numpy do not share comes back as an ml_dtypes array, exactly as stored; it takes anything
that `np.asarray` reads, tensors of the CPU included, and `.astype(np.float32)` is what it is worth.

A group of zeros always has scale 1. Sources: OCP "8-bit Floating Point Specification"; OCP
"Microscaling Formats (MX) Specification" v1.0, 6.3; the compressed-tensors package for NVFP4 and
for the exponent that is rounded up.
"""

from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

from quant.format.codebooks import LARGEST
from quant.format.rounding import Values, without_zeros
from quant.format.scheme import Codebook

NVFP4_RANGE = LARGEST["e4m3"] * LARGEST["e2m1"]
SMALLEST_E4M3 = 2.0**-9
_BIAS = 127
_LARGEST_EXPONENT: dict[Codebook, int] = {"e2m1": 2, "e4m3": 8}
ExponentRule = Literal["floor", "rounded"]


def fp8_scale(absmax: Values) -> Values:
    """Step size of 8-bit floats: absmax / 448, for whatever shares it; 1 for zeros."""
    scale: Values = absmax / LARGEST["e4m3"]
    return without_zeros(scale)


def nvfp4_global_scale(absmax: float) -> float:
    """The divisor that brings the scales of a tensor's groups to the whole range of e4m3:
    448 * 6 / absmax, a float32. Weights that servers fuse take the largest absmax of them all."""
    if absmax == 0:
        return 1.0
    largest = np.finfo(np.float32).max
    return float(np.float32(min(NVFP4_RANGE / float(absmax), float(largest))))


def nvfp4_scale(absmax: npt.ArrayLike, global_scale: float) -> npt.NDArray[Any]:
    """float8_e4m3fn of the shape of `absmax`: the stored scale of each group.

    One that would round to 0 becomes the smallest number above. Codes must be chosen with
    `scale / global_scale`, the scale as decoded.
    """
    largest_values = np.asarray(absmax, dtype=np.float32)
    exact = largest_values / np.float32(LARGEST["e2m1"]) * np.float32(global_scale)
    bounded = np.clip(exact, SMALLEST_E4M3, LARGEST["e4m3"])
    return np.where(largest_values == 0, np.float32(1), bounded).astype(ml_dtypes.float8_e4m3fn)


def mx_scale(
    absmax: npt.ArrayLike, codebook: Codebook, rule: ExponentRule = "rounded"
) -> npt.NDArray[Any]:
    """float8_e8m0fnu of the shape of `absmax`: a power of two for each group.

    floor: floor(log2(absmax)) less the exponent of the codebook's largest number, as OCP has it;
    magnitudes beyond that number saturate. rounded: one more where the mantissa of absmax is 1.75
    or above, as compressed-tensors has it, so that none saturates by more than a half step.
    """
    values = np.asarray(absmax, dtype=np.float32)
    fraction, exponent = np.frexp(values)
    exponent = exponent - 1 + (fraction >= 0.875 if rule == "rounded" else 0)
    biased = np.clip(exponent - _LARGEST_EXPONENT[codebook] + _BIAS, 0, 254)
    biased = np.where(values == 0, _BIAS, biased)
    return biased.astype(np.uint8).view(ml_dtypes.float8_e8m0fnu)


def snap_e2m1(values: Values) -> Values:
    """The 4-bit float nearest to each value, ties to the even code, saturating at 6."""
    size: Any = abs(values).clip(None, LARGEST["e2m1"])
    zeros = size * 0
    # Neighbours are 0.5 apart below 2, 1 below 4, and 2 above. Bools are added, for torch does not
    # subtract them and numpy widens their products.
    step = (zeros + 1 + (size >= 2) + (size >= 4) + (size >= 4)) / 2
    sign = zeros - 1 + (values >= 0) + (values >= 0)
    snapped: Values = (size / step).round() * step * sign
    return snapped


def snap_e4m3(values: npt.ArrayLike) -> npt.NDArray[np.float32]:
    """float32: the 8-bit float nearest to each value, ties to the even code, saturating at 448."""
    bounded = np.clip(np.asarray(values, dtype=np.float32), -LARGEST["e4m3"], LARGEST["e4m3"])
    return bounded.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)


def codebook_codes(levels: npt.ArrayLike, codebook: Codebook) -> npt.NDArray[np.int8]:
    """int8: the stored bits of numbers that are of the codebook, as the snapping functions give."""
    values = np.asarray(levels, dtype=np.float32)
    if codebook == "e4m3":
        return values.astype(ml_dtypes.float8_e4m3fn).view(np.int8)
    if codebook == "e2m1":
        return values.astype(ml_dtypes.float4_e2m1fn).view(np.int8)
    raise ValueError(f"{codebook} is no floating-point codebook")
