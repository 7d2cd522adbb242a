"""Where numbers are rounded and clamped: nowhere else.

The same functions work on numpy arrays and on torch tensors, which share the few methods they use.
Both round half to even. Codes come back in the floating type of their input, holding integers; the
caller casts them.
"""

from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from quant.format.errors import InputError


class FloatValues(Protocol):
    """What a numpy array and a torch tensor have in common."""

    def round(self) -> Any: ...
    def clip(self, min: Any, max: Any, /) -> Any: ...
    def __abs__(self) -> Any: ...
    def __ge__(self, other: Any, /) -> Any: ...
    def __add__(self, other: Any, /) -> Any: ...
    def __sub__(self, other: Any, /) -> Any: ...
    def __mul__(self, other: Any, /) -> Any: ...
    def __truediv__(self, other: Any, /) -> Any: ...


Values = TypeVar("Values", bound=FloatValues)


def code_range(num_bits: int) -> tuple[int, int]:
    """(qmin, qmax) of signed codes."""
    half = 1 << (num_bits - 1)
    return -half, half - 1


def absmax_scale(values_absmax: Values, num_bits: int) -> Values:
    """Symmetric step size: absmax / ((qmax - qmin) / 2), so absmax / 7.5 at 4 bits.

    A group of zeros (or of values too small for a step) gets 1, so that nothing divides by 0.
    Source: the compressed-tensors rule.
    """
    qmin, qmax = code_range(num_bits)
    scale: Values = values_absmax / ((qmax - qmin) / 2)
    return without_zeros(scale)


def minmax_scale(minimum: Values, maximum: Values, num_bits: int) -> Values:
    """Asymmetric step size of [minimum, maximum] widened to hold 0; 1 for a group of zeros."""
    qmin, qmax = code_range(num_bits)
    low, high = minimum.clip(None, 0), maximum.clip(0, None)
    scale: Values = (high - low) / (qmax - qmin)
    return without_zeros(scale)


def zero_point_for(minimum: Values, scale: Values, num_bits: int) -> Values:
    """The code that stands for 0 when `minimum` is to have the code qmin, within [qmin, qmax]."""
    qmin, qmax = code_range(num_bits)
    exact = minimum.clip(None, 0) / scale * -1 + qmin
    zero_point: Values = exact.round().clip(qmin, qmax)
    return zero_point


def minmax_scale_zero(minimum: Values, maximum: Values, num_bits: int) -> tuple[Values, Values]:
    """(scale, zero_point) of an asymmetric group.

    When the scale is stored in 16 bits, call `zero_point_for` again with the stored scale.
    """
    scale = minmax_scale(minimum, maximum, num_bits)
    return scale, zero_point_for(minimum, scale, num_bits)


def quantize_codes(
    values: Values, scale: Values, zero_point: Values | None, qmin: int, qmax: int
) -> Values:
    """round(values / scale + zero_point) within [qmin, qmax]; scale and zero_point broadcast."""
    steps = values / scale
    if zero_point is not None:
        steps = steps + zero_point
    codes: Values = steps.clip(qmin, qmax).round()
    return codes


def dequantize_codes(codes: Values, scale: Values, zero_point: Values | None) -> Values:
    """(codes - zero_point) * scale; the inverse of `quantize_codes` up to half a step."""
    steps = codes if zero_point is None else codes - zero_point
    values: Values = steps * scale
    return values


def store_scale(scale: npt.NDArray[Any], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """`scale` rounded to the type it is stored in (float16, ml_dtypes.bfloat16 or float32).

    Raises InputError when a scale is not finite there, or becomes 0.
    """
    target = np.dtype(dtype)
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        stored = np.asarray(scale).astype(target)
    wide = stored.astype(np.float32)
    if not np.isfinite(wide).all():
        raise InputError(
            f"a scale of {_worst(scale, wide):g} does not fit {target.name}; "
            "store scales as bfloat16 or float32"
        )
    if (wide == 0).any():
        raise InputError(
            f"a scale of {_worst(scale, wide):g} becomes 0 in {target.name}; "
            "store scales as bfloat16 or float32"
        )
    return stored


def without_zeros(scale: Values) -> Values:
    """Zeros become 1: adding the comparison works alike in numpy and torch."""
    replaced: Values = scale + (scale == 0)  # type: ignore[comparison-overlap]
    return replaced


def _worst(scale: npt.NDArray[Any], stored: npt.NDArray[np.float32]) -> float:
    bad = ~np.isfinite(stored) | (stored == 0)
    return float(np.asarray(scale, dtype=np.float64)[bad].flat[0])
