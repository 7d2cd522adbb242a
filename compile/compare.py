"""Do two containers hold the same numbers? Compared tensor by tensor, a block of rows at a time."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from compile.checks import (
    Check,
    as_we_encode,
    equal_values,
    nearest_floats,
    nearest_integers,
    nearest_levels,
    same_codes_nearest_factor,
    same_integers,
    same_integers_rounded_minimum,
    same_values,
)
from compile.digest import tensor_digest
from quant.format.ggml_again import (
    block_type,
    exact_blocks,
    float_encoders,
    relative_rms,
    rounded_again,
)
from quant.format.gguf_types import NVFP4
from quant.format.scheme import CodebookScheme, IntScheme
from quant.format.tensor import QuantizedTensor, Weight

BLOCK_ELEMENTS = 1 << 20
MAX_MISMATCHES = 5

State = Literal["equal", "rounded", "requantized", "different"]
"""equal: the same integers and scales, or the same float numbers bit for bit. rounded: each float
is the nearest one in the artifact's dtype. requantized: the reference holds floats, or finer
numbers, and each integer (or value of a codebook) is the nearest; blocks of ggml's types are to the
bit what our encoder makes of integers, and of floats too, or `encoder` says so. different: none."""
Encoder = Literal["ours", "another"]


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
    integers, scales and zero points of either side, see `compile.digest`. encoder: of blocks
    rounded from the reference: ours, to the bit, or another, whose scales nobody can check."""

    name: str
    reference: str
    stored: str
    state: State
    mismatched: int = 0
    first: tuple[Mismatch, ...] = ()
    rms_error: float | None = None
    digest: str = ""
    reference_digest: str = ""
    encoder: Encoder | None = None


def compare_weights(name: str, reference: Weight, stored: Weight) -> TensorState:
    """The strongest state that holds for every element of `stored`, seen from `reference`."""
    labels = (name, _label(reference), _label(stored))
    if reference.shape != stored.shape:
        shapes = f"{list(reference.shape)} and {list(stored.shape)}"
        return TensorState(name, f"{labels[1]} {shapes}", labels[2], "different", 1)
    digests = tensor_digest(stored), tensor_digest(reference)
    for state, checks, encoder in _attempts(reference, stored):
        count, first = _mismatches(reference, stored, checks)
        if count == 0:
            lost = None if state == "equal" else relative_rms(reference, stored)
            return TensorState(*labels, state, 0, (), lost, *digests, encoder)
    return TensorState(*labels, "different", count, first, None, *digests)


Checks = Callable[[Any, Any], list[Check]]


def _attempts(reference: Weight, stored: Weight) -> Iterator[tuple[State, Checks, Encoder | None]]:
    """Ways in which the two may agree, the one whose mismatches tell most last."""
    if isinstance(stored, QuantizedTensor) and isinstance(reference, QuantizedTensor):
        yield from _attempts_of_integers(reference, stored)
    elif isinstance(stored, QuantizedTensor):
        kind = block_type(stored.scheme)
        for encode in float_encoders(kind) if kind else ():
            yield "requantized", partial(as_we_encode, encode), "ours"
        integers = isinstance(stored.scheme, IntScheme)
        nearest = nearest_integers if integers else nearest_levels
        yield "requantized", nearest, "another" if kind else None
    else:
        yield "equal", same_values, None
        yield "rounded", nearest_floats, None


def _attempts_of_integers(
    reference: QuantizedTensor, stored: QuantizedTensor
) -> Iterator[tuple[State, Checks, Encoder | None]]:
    if stored.minimum is None or reference.minimum is not None:
        yield "equal", same_integers, None
    else:
        yield "equal", equal_values, None
        yield "rounded", same_integers_rounded_minimum, None
    kind = block_type(stored.scheme)
    if kind == NVFP4 == block_type(reference.scheme):
        yield "rounded", same_codes_nearest_factor, None
    if kind is not None and exact_blocks("", kind, reference) is None:
        yield "requantized", partial(as_we_encode, partial(rounded_again, "", kind)), "ours"
    elif kind is None and isinstance(stored.scheme, IntScheme) and _coarser(reference, stored):
        yield "requantized", nearest_integers, None


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


def _label(weight: Weight) -> str:
    if isinstance(weight, QuantizedTensor):
        return str(weight.scheme)
    return str(weight.dtype.name)
