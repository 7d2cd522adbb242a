"""Do two containers hold the same numbers? Compared tensor by tensor, a block of rows at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from compile.digest import tensor_digest
from quant.format.codebooks import codebook_values
from quant.format.ggml_again import exact_blocks, relative_rms, rounded_again
from quant.format.gguf_types import TYPE_BY_NAME
from quant.format.scheme import CodebookScheme, IntScheme
from quant.format.tensor import FloatArray, QuantizedTensor, Weight

BLOCK_ELEMENTS = 1 << 20
MAX_MISMATCHES = 5
UNIT_ROUNDOFF = {"float16": 2.0**-11, "bfloat16": 2.0**-8, "float32": 2.0**-24}
SMALLEST_STEP = 2.0**-18
"""A group may have scale 0 when its floats are below 127 halves of float16's smallest number."""

State = Literal["equal", "rounded", "requantized", "different"]
"""equal: the same integers and scales, or the same float numbers bit for bit. rounded: each float
is the nearest one in the artifact's dtype. requantized: the reference holds floats, or finer
numbers, and each integer (or value of a codebook) is the nearest. different: none of these."""

Float32 = npt.NDArray[np.float32]
Matrix = npt.NDArray[Any]


@dataclass(frozen=True)
class Mismatch:
    """One element that differs: `what` is its integer, scale, minimum or value."""

    row: int
    column: int
    what: str
    reference: float
    stored: float


@dataclass(frozen=True)
class TensorState:
    """What became of one tensor; `reference` and `stored` name its number formats. rms_error:
    relative to the reference's numbers, where these were rounded. digest, reference_digest: of the
    integers, scales and zero points of either side, see `compile.digest`."""

    name: str
    reference: str
    stored: str
    state: State
    mismatched: int = 0
    first: tuple[Mismatch, ...] = ()
    rms_error: float | None = None
    digest: str = ""
    reference_digest: str = ""


@dataclass(frozen=True)
class _Check:
    """One quantity of a block of rows: [rows, columns] of each side, which must agree."""

    what: str
    reference: Matrix
    stored: Matrix
    agree: npt.NDArray[np.bool_]


def compare_weights(name: str, reference: Weight, stored: Weight) -> TensorState:
    """The strongest state that holds for every element of `stored`, seen from `reference`."""
    labels = (name, _label(reference), _label(stored))
    if reference.shape != stored.shape:
        shapes = f"{list(reference.shape)} and {list(stored.shape)}"
        return TensorState(name, f"{labels[1]} {shapes}", labels[2], "different", 1)
    digests = {"digest": tensor_digest(stored), "reference_digest": tensor_digest(reference)}
    for state, checks in _attempts(reference, stored):
        count, first = _mismatches(reference, stored, checks)
        if count == 0:
            lost = None if state == "equal" else relative_rms(reference, stored)
            return TensorState(*labels, state, rms_error=lost, **digests)
    return TensorState(*labels, "different", count, first, **digests)


Checks = Callable[[Any, Any], list[_Check]]


def _attempts(reference: Weight, stored: Weight) -> Iterator[tuple[State, Checks]]:
    """Ways in which the two may agree, the one whose mismatches tell most last."""
    if isinstance(stored, QuantizedTensor) and isinstance(reference, QuantizedTensor):
        yield from _attempts_of_integers(reference, stored)
    elif isinstance(stored, QuantizedTensor):
        integers = isinstance(stored.scheme, IntScheme)
        yield "requantized", _nearest_integers if integers else _nearest_levels
    else:
        yield "equal", _same_values
        yield "rounded", _nearest_floats


def _attempts_of_integers(
    reference: QuantizedTensor, stored: QuantizedTensor
) -> Iterator[tuple[State, Checks]]:
    if stored.minimum is None or reference.minimum is not None:
        yield "equal", _same_integers
    else:
        yield "equal", _equal_values
        yield "rounded", _same_integers_rounded_minimum
    name = stored.scheme.ggml_type
    if name is not None and exact_blocks("", TYPE_BY_NAME[name], reference) is None:
        yield "requantized", _as_we_encode
    elif name is None and isinstance(stored.scheme, IntScheme) and _coarser(reference, stored):
        yield "requantized", _nearest_integers


def _coarser(reference: QuantizedTensor, stored: QuantizedTensor) -> bool:
    """Whether no build could have kept the reference's numbers: formats that can hold them must."""
    ours, theirs = stored.scheme, reference.scheme
    return ours.num_bits < theirs.num_bits or isinstance(theirs, CodebookScheme)


def _mismatches(
    reference: Weight, stored: Weight, checks: Checks
) -> tuple[int, tuple[Mismatch, ...]]:
    count, first = 0, list[Mismatch]()
    for start, a, b in _row_blocks(reference, stored):
        for check in checks(a, b):
            rows, columns = np.nonzero(~check.agree)
            count += len(rows)
            for row, column in zip(rows[:MAX_MISMATCHES], columns[:MAX_MISMATCHES], strict=True):
                pair = float(check.reference[row, column]), float(check.stored[row, column])
                first.append(Mismatch(start + int(row), int(column), check.what, *pair))
    return count, tuple(first[:MAX_MISMATCHES])


def _row_blocks(a: Weight, b: Weight) -> Iterator[tuple[int, Weight, Weight]]:
    """First row and both sides of each block; vectors become one column."""
    rows, columns = a.shape[0], int(np.prod(a.shape[1:]))
    step = max(1, BLOCK_ELEMENTS // max(1, columns))
    for start in range(0, rows, step):
        picked = np.arange(start, min(rows, start + step), dtype=np.intp)
        yield start, _rows(a, picked), _rows(b, picked)


def _rows(weight: Weight, rows: npt.NDArray[np.intp]) -> Weight:
    if isinstance(weight, QuantizedTensor):
        return weight.take_rows(rows)
    return weight[rows[0] : rows[-1] + 1].reshape(len(rows), -1)


def _same_integers(reference: QuantizedTensor, stored: QuantizedTensor) -> list[_Check]:
    return [
        _exact("integer", _integers(reference), _integers(stored)),
        _bitwise("scale", _per_column(reference, "scale"), _per_column(stored, "scale")),
        _bitwise("minimum", _per_column(reference, "minimum"), _per_column(stored, "minimum")),
        *_same_input_scale(reference, stored),
    ]


def _same_input_scale(reference: QuantizedTensor, stored: QuantizedTensor) -> list[_Check]:
    """Only where both round inputs alike: a container that rounds none has no place for a scale."""
    activation = stored.scheme.activation
    if activation is None or activation != reference.scheme.activation:
        return []
    sides = [np.full((1, 1), side.input_scale or 0, np.float32) for side in (reference, stored)]
    return [_bitwise("input scale", *sides)]


def _same_integers_rounded_minimum(
    reference: QuantizedTensor, stored: QuantizedTensor
) -> list[_Check]:
    """GGUF's `_1` types count codes from 0 and store -zero_point * scale, rounded, as a minimum."""
    lowest = _int_scheme(reference).qmin
    scale = _per_column(reference, "scale")
    zero_point = _per_column(reference, "zero_point") - np.float32(lowest)
    assert stored.minimum is not None
    expected = _rounded(-zero_point * scale, stored.minimum.dtype)
    return [
        _exact("integer", reference.codes.astype(np.int16) - lowest, _integers(stored)),
        _bitwise("scale", scale, _per_column(stored, "scale")),
        _exact("minimum", expected, _per_column(stored, "minimum")),
    ]


def _same_values(reference: Weight, stored: Weight) -> list[_Check]:
    return [_bitwise("value", _values(reference), _values(stored))]


def _equal_values(reference: QuantizedTensor, stored: QuantizedTensor) -> list[_Check]:
    """A zero may have another sign: which one it has, the way to add a minimum decides."""
    return [_exact("value", _values(reference), _values(stored))]


def _as_we_encode(reference: QuantizedTensor, stored: QuantizedTensor) -> list[_Check]:
    """A block depends on its own values alone, so that rows can be encoded again part by part."""
    assert stored.scheme.ggml_type is not None
    expected = rounded_again("", TYPE_BY_NAME[stored.scheme.ggml_type], reference)
    return _same_integers(expected, stored)


def _nearest_floats(reference: Weight, stored: FloatArray) -> list[_Check]:
    values = _values(reference)
    expected = _rounded(values, stored.dtype)
    check = _bitwise("value", expected, _values(stored))
    overflowed = np.isinf(expected) & np.isfinite(values)
    return [_Check("value", values, check.stored, check.agree & ~overflowed)]


def _nearest_integers(reference: Weight, stored: QuantizedTensor) -> list[_Check]:
    """Whatever scale was chosen, an integer is at most half a step from its float, unless it is the
    last one on that side. Writers may divide before they round scale and minimum to 16 bits, which
    moves the quotient by the unit roundoff of those."""
    scale, minimum = _per_column(stored, "scale"), _per_column(stored, "minimum")
    integers = _integers(stored).astype(np.float32)
    offset = _values(reference) - minimum
    step = np.where(scale == 0, np.float32(1), scale)
    exact = np.where(scale == 0, integers, offset / step)
    clipped = np.clip(exact, *_integer_limits(stored))
    roundoff = UNIT_ROUNDOFF[stored.scale.dtype.name] + 2.0**-20
    slack = 0.5 + roundoff * (np.abs(clipped) + np.abs(minimum / step))
    lost = (scale == 0) & (np.abs(offset) > SMALLEST_STEP)
    return [_Check("integer", exact, integers, (np.abs(clipped - integers) <= slack) & ~lost)]


def _nearest_levels(reference: FloatArray, stored: QuantizedTensor) -> list[_Check]:
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
    return [_Check("value", exact, stored_values, near)]


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


def _integers(tensor: QuantizedTensor) -> npt.NDArray[np.int16]:
    """int16 [rows, in]: code - zero_point, which no choice of zero point changes; or the bits of a
    codebook."""
    codes = tensor.codes.astype(np.int16)
    if tensor.zero_point is None:
        return codes
    return codes - tensor.zero_point.astype(np.int16)[:, tensor.column_groups()]


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


def _exact(what: str, reference: Matrix, stored: Matrix) -> _Check:
    return _Check(what, reference, stored, reference == stored)


def _bitwise(what: str, reference: Float32, stored: Float32) -> _Check:
    same = reference.view(np.uint32) == stored.view(np.uint32)
    return _Check(what, reference, stored, same)


def _label(weight: Weight) -> str:
    if isinstance(weight, QuantizedTensor):
        return str(weight.scheme)
    return str(weight.dtype.name)
