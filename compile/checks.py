"""What may agree between rows of the reference and those of an artifact, element by element."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quant.format.codebooks import codebook_values
from quant.format.ggml_fp4 import factor_of, with_factor
from quant.format.scheme import CodebookScheme, IntScheme
from quant.format.tensor import FloatArray, QuantizedTensor, Weight

UNIT_ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24}
SMALLEST_STEP = 2.0**-18
"""A group may have scale 0 when its floats are below 127 halves of float16's smallest number."""

Float32 = npt.NDArray[np.float32]
Matrix = npt.NDArray[Any]


@dataclass(frozen=True)
class Check:
    """One quantity of a block of rows: [rows, columns] of each side, which must agree."""

    what: str
    reference: Matrix
    stored: Matrix
    agree: npt.NDArray[np.bool_]


def same_integers(reference: QuantizedTensor, stored: QuantizedTensor) -> list[Check]:
    return [
        _exact("integer", reference.integers(), stored.integers()),
        _bitwise("scale", _per_column(reference, "scale"), _per_column(stored, "scale")),
        _bitwise("minimum", _per_column(reference, "minimum"), _per_column(stored, "minimum")),
        *_same_input_scale(reference, stored),
    ]


def _same_input_scale(reference: QuantizedTensor, stored: QuantizedTensor) -> list[Check]:
    """Only where both round inputs alike: a container that rounds none has no place for a scale."""
    activation = stored.scheme.activation
    if activation is None or activation != reference.scheme.activation:
        return []
    sides = [np.full((1, 1), side.input_scale or 0, np.float32) for side in (reference, stored)]
    return [_bitwise("input scale", *sides)]


def same_integers_rounded_minimum(
    reference: QuantizedTensor, stored: QuantizedTensor
) -> list[Check]:
    """GGUF's `_1` types count codes from 0 and store -zero_point * scale, rounded, as a minimum."""
    lowest = _int_scheme(reference).qmin
    scale = _per_column(reference, "scale")
    zero_point = _per_column(reference, "zero_point") - np.float32(lowest)
    assert stored.minimum is not None
    expected = _rounded(-zero_point * scale, stored.minimum.dtype)
    return [
        _exact("integer", reference.codes.astype(np.int16) - lowest, stored.integers()),
        _bitwise("scale", scale, _per_column(stored, "scale")),
        _exact("minimum", expected, _per_column(stored, "minimum")),
    ]


def same_codes_nearest_factor(reference: QuantizedTensor, stored: QuantizedTensor) -> list[Check]:
    """GGUF multiplies NVFP4 where others divide: one over the divisor is rounded to float32."""
    scales = [
        side.scale.astype(np.float32)[:, side.column_groups()] for side in (reference, stored)
    ]
    expected = with_factor(reference, factor_of(reference)).global_scale or 0
    divisors = [
        np.full((1, 1), value, np.float32) for value in (expected, stored.global_scale or 0)
    ]
    return [
        _exact("integer", reference.integers(), stored.integers()),
        _bitwise("scale", *scales),
        _bitwise("global scale", *divisors),
    ]


def same_values(reference: Weight, stored: Weight) -> list[Check]:
    return [_bitwise("value", _values(reference), _values(stored))]


def equal_values(reference: QuantizedTensor, stored: QuantizedTensor) -> list[Check]:
    """A zero may have another sign: which one it has, the way to add a minimum decides."""
    return [_exact("value", _values(reference), _values(stored))]


def as_we_encode(
    encode: Callable[[Any], QuantizedTensor], reference: Weight, stored: QuantizedTensor
) -> list[Check]:
    """A block depends on its own values alone, so that rows can be encoded again part by part."""
    return same_integers(encode(reference), stored)


def nearest_floats(reference: Weight, stored: FloatArray) -> list[Check]:
    values = _values(reference)
    expected = _rounded(values, stored.dtype)
    check = _bitwise("value", expected, _values(stored))
    overflowed = np.isinf(expected) & np.isfinite(values)
    return [Check("value", values, check.stored, check.agree & ~overflowed)]


def nearest_integers(reference: Weight, stored: QuantizedTensor) -> list[Check]:
    """Whatever scale was chosen, an integer is at most half a step from its float, unless it is the
    last one on that side. Writers may divide before they round scale and minimum to 16 bits, which
    moves the quotient by the unit roundoff of those."""
    scale, minimum = _per_column(stored, "scale"), _per_column(stored, "minimum")
    integers = stored.integers().astype(np.float32)
    offset = _values(reference) - minimum
    step = np.where(scale == 0, np.float32(1), scale)
    exact = np.where(scale == 0, integers, offset / step)
    clipped = np.clip(exact, *_integer_limits(stored))
    roundoff = UNIT_ROUNDOFF[stored.scale.dtype.name] + 2.0**-20
    slack = 0.5 + roundoff * (np.abs(clipped) + np.abs(minimum / step))
    lost = (scale == 0) & (np.abs(offset) > SMALLEST_STEP)
    return [Check("integer", exact, integers, (np.abs(clipped - integers) <= slack) & ~lost)]


def nearest_levels(reference: FloatArray, stored: QuantizedTensor) -> list[Check]:
    """The same for codebooks: no other value of the codebook is nearer to the float."""
    scheme, scale = stored.scheme, _per_column(stored, "scale")
    assert isinstance(scheme, CodebookScheme)
    values = codebook_values(scheme.codebook)
    levels = np.unique(values[np.isfinite(values)])
    stored_values = values[stored.codes.view(np.uint8)]
    step = np.where(scale == 0, np.float32(1), scale)
    exact = np.where(scale == 0, stored_values, _values(reference) / step)
    above = np.clip(np.searchsorted(levels, exact), 1, len(levels) - 1)
    nearest = np.minimum(np.abs(exact - levels[above]), np.abs(exact - levels[above - 1]))
    slack = (UNIT_ROUNDOFF["bfloat16"] + 2.0**-20) * np.abs(exact)
    near = np.abs(exact - stored_values) <= nearest + slack
    return [Check("value", exact, stored_values, near)]


def _int_scheme(tensor: QuantizedTensor) -> IntScheme:
    assert isinstance(tensor.scheme, IntScheme)
    return tensor.scheme


def _integer_limits(stored: QuantizedTensor) -> tuple[Matrix | float, Matrix | float]:
    scheme = _int_scheme(stored)
    lowest, highest = float(scheme.qmin), float(scheme.qmax)
    if stored.minimum is not None:
        return 0.0, highest - lowest
    zero_point = _per_column(stored, "zero_point")
    return lowest - zero_point, highest - zero_point


def _per_column(tensor: QuantizedTensor, what: str) -> Float32:
    """float32 [rows, in]: a group's number repeated for each of its columns; zeros when absent."""
    numbers = tensor.effective_scale() if what == "scale" else getattr(tensor, what)
    if numbers is None:
        return np.zeros(tensor.shape, np.float32)
    expanded: Float32 = numbers.astype(np.float32)[:, tensor.column_groups()]
    return expanded


def _values(weight: Weight) -> Float32:
    if isinstance(weight, QuantizedTensor):
        return weight.dequantize()
    return np.asarray(weight, dtype=np.float32)


def _rounded(values: Float32, dtype: np.dtype[Any]) -> Float32:
    with np.errstate(over="ignore"):
        rounded: Float32 = values.astype(dtype).astype(np.float32)
    return rounded


def _exact(what: str, reference: Matrix, stored: Matrix) -> Check:
    return Check(what, reference, stored, reference == stored)


def _bitwise(what: str, reference: Float32, stored: Float32) -> Check:
    same = reference.view(np.uint32) == stored.view(np.uint32)
    return Check(what, reference, stored, same)
