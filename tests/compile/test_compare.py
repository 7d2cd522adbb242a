"""Equality of numbers across containers, against dequantizing both and looking."""

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compile.compare import compare_weights
from quant.format.codebooks import codebook_values
from quant.format.scheme import CodebookScheme, IntScheme, PerChannel, PerGroup
from quant.format.tensor import FloatArray, QuantizedTensor
from tests.quant.format.random_weights import WITH_ACTIVATIONS, random_weight

ROWS, COLUMNS = 4, 128


def random_int4(seed: int, symmetric: bool, group_size: int = 64) -> QuantizedTensor:
    random = np.random.default_rng(seed)
    groups = COLUMNS // group_size
    zero_point = None if symmetric else random.integers(-8, 8, (ROWS, groups), dtype=np.int8)
    return QuantizedTensor(
        IntScheme(4, symmetric, PerGroup(group_size)),
        random.integers(-8, 8, (ROWS, COLUMNS), dtype=np.int8),
        random.uniform(0.01, 0.1, (ROWS, groups)).astype(np.float16),
        zero_point,
    )


def as_blocks(tensor: QuantizedTensor) -> QuantizedTensor:
    """The obvious way to carry a weight in Q5_0: groups of 32, no zero points."""
    group = tensor.column_groups()
    codes = tensor.codes.astype(np.int16)
    if tensor.zero_point is not None:
        codes -= tensor.zero_point[:, group]
    return QuantizedTensor(
        IntScheme(5, True, PerGroup(32)), codes.astype(np.int8), tensor.scale[:, group[::32]]
    )


def as_q4_1(tensor: QuantizedTensor) -> QuantizedTensor:
    group = tensor.column_groups()[::32]
    scale = tensor.scale[:, group]
    zero = np.zeros_like(scale, np.float32) if tensor.zero_point is None else tensor.zero_point
    zero = zero[:, group] if tensor.zero_point is not None else zero
    minimum = (-(zero.astype(np.float32) + 8) * scale.astype(np.float32)).astype(np.float16)
    codes = (tensor.codes.astype(np.int16) + 8).astype(np.int8)
    scheme = IntScheme(4, False, PerGroup(32))
    return QuantizedTensor(scheme, codes, scale, minimum=minimum)


def changed(array: npt.NDArray[Any], row: int, column: int, value: Any) -> npt.NDArray[Any]:
    copy = array.copy()
    copy[row, column] = value
    return copy


@given(seed=st.integers(0, 99), symmetric=st.booleans(), group_size=st.sampled_from([32, 64, 128]))
@settings(max_examples=30)
def test_the_same_integers_in_another_form_are_equal(
    seed: int, symmetric: bool, group_size: int
) -> None:
    reference = random_int4(seed, symmetric, group_size)
    stored = as_blocks(reference)
    np.testing.assert_array_equal(reference.dequantize(), stored.dequantize())
    state = compare_weights("w", reference, stored)
    assert (state.state, state.mismatched) == ("equal", 0)
    assert (state.reference, state.stored) == (str(reference.scheme), "int5-sym-g32")


def test_a_permuted_group_index_is_followed() -> None:
    reference = random_int4(1, symmetric=True, group_size=64)
    order = np.random.default_rng(0).permutation(COLUMNS)
    shuffled = QuantizedTensor(
        reference.scheme,
        reference.codes[:, order],
        reference.scale,
        group_index=reference.column_groups()[order],
    )
    plain = QuantizedTensor(reference.scheme, shuffled.codes, reference.scale)
    each_column = QuantizedTensor(
        IntScheme(4, True, PerGroup(1)),
        shuffled.codes,
        reference.scale[:, shuffled.column_groups()],
    )
    assert compare_weights("w", shuffled, each_column).state == "equal"
    assert compare_weights("w", shuffled, plain).state == "different"


@given(
    seed=st.integers(0, 9),
    row=st.integers(0, ROWS - 1),
    column=st.integers(0, COLUMNS - 1),
    symmetric=st.booleans(),
)
@settings(max_examples=30)
def test_one_changed_integer_is_found(seed: int, row: int, column: int, symmetric: bool) -> None:
    reference = random_int4(seed, symmetric)
    stored = as_blocks(reference)
    wrong = stored.codes[row, column] - 1
    codes = changed(stored.codes, row, column, wrong)
    state = compare_weights("w", reference, QuantizedTensor(stored.scheme, codes, stored.scale))
    assert (state.state, state.mismatched) == ("different", 1)
    found = state.first[0]
    assert (found.row, found.column, found.what) == (row, column, "integer")
    assert (found.reference, found.stored) == (wrong + 1, wrong)


def test_one_changed_scale_is_found_in_each_of_its_columns() -> None:
    reference = random_int4(3, symmetric=True)
    stored = as_blocks(reference)
    scale = changed(stored.scale, 2, 1, np.nextafter(stored.scale[2, 1], np.float16(1)))
    state = compare_weights("w", reference, QuantizedTensor(stored.scheme, stored.codes, scale))
    assert (state.state, state.mismatched) == ("different", 32)
    assert {(m.row, m.what) for m in state.first} == {(2, "scale")}
    assert [m.column for m in state.first] == [32, 33, 34, 35, 36]


@pytest.mark.parametrize("symmetric", [True, False])
def test_a_minimum_may_be_rounded_but_not_be_another(symmetric: bool) -> None:
    reference = random_int4(4, symmetric)
    stored = as_q4_1(reference)
    state = compare_weights("w", reference, stored).state
    assert state == ("equal" if symmetric else "rounded")
    assert stored.minimum is not None
    step = np.nextafter(stored.minimum[0, 0], np.float16(1))
    other = QuantizedTensor(
        stored.scheme, stored.codes, stored.scale, minimum=changed(stored.minimum, 0, 0, step)
    )
    state = compare_weights("w", reference, other).state
    assert state == "different"


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ("bfloat16", "bfloat16", "equal"),
        ("bfloat16", "float32", "equal"),
        ("float32", "float16", "rounded"),
        ("float32", "bfloat16", "rounded"),
    ],
)
def test_floats_are_equal_or_the_nearest(source: str, target: str, expected: str) -> None:
    values = np.random.default_rng(5).standard_normal((7, 5)).astype(as_dtype(source))
    stored: FloatArray = values.astype(as_dtype(target))
    assert compare_weights("w", values, stored).state == expected
    spoiled = changed(stored, 3, 2, np.nextafter(stored[3, 2], stored.dtype.type(9)))
    state = compare_weights("w", values, spoiled)
    assert (state.state, state.mismatched) == ("different", 1)
    assert (state.first[0].row, state.first[0].column) == (3, 2)


def as_dtype(name: str) -> Any:
    return ml_dtypes.bfloat16 if name == "bfloat16" else np.dtype(name)


def test_a_float_that_overflows_is_no_rounding() -> None:
    reference = np.array([[1.0, 70_000.0]], np.float32)
    with np.errstate(over="ignore"):
        stored = reference.astype(np.float16)
    state = compare_weights("w", reference, stored)
    assert (state.state, state.first[0].reference) == ("different", 70_000.0)


def test_vectors_and_shapes() -> None:
    vector = np.arange(6, dtype=np.float32)
    assert compare_weights("w", vector, vector.copy()).state == "equal"
    assert compare_weights("w", vector, vector[:5]).state == "different"
    spoiled = compare_weights("w", vector, vector + (np.arange(6) == 4))
    assert (spoiled.mismatched, spoiled.first[0].row, spoiled.first[0].column) == (1, 4, 0)


def test_integers_carried_as_their_floats() -> None:
    reference = random_int4(6, symmetric=False)
    exact = reference.dequantize()
    assert compare_weights("w", reference, exact).state == "equal"
    assert compare_weights("w", reference, exact.astype(ml_dtypes.bfloat16)).state == "rounded"


def nearest(values: npt.NDArray[np.float32], scale: npt.NDArray[Any], bits: int) -> QuantizedTensor:
    half = 1 << (bits - 1)
    codes = np.clip(np.rint(values / scale.astype(np.float32)), -half, half - 1).astype(np.int8)
    scheme = IntScheme(bits, True, PerChannel())
    return QuantizedTensor(scheme, codes, scale)


@given(seed=st.integers(0, 99), bits=st.sampled_from([4, 8]), shrink=st.floats(0.5, 1))
@settings(max_examples=30)
def test_floats_made_integers_must_be_the_nearest(seed: int, bits: int, shrink: float) -> None:
    values = np.random.default_rng(seed).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    largest = np.abs(values).max(1, keepdims=True)
    scale = (largest * shrink / (1 << (bits - 1))).astype(np.float16)
    stored = nearest(values, scale, bits)
    assert compare_weights("w", values, stored).state == "requantized"
    wrong = stored.codes[1, 7] + (-2 if stored.codes[1, 7] > 0 else 2)
    spoiled = QuantizedTensor(stored.scheme, changed(stored.codes, 1, 7, wrong), scale)
    state = compare_weights("w", values, spoiled)
    assert (state.state, state.mismatched) == ("different", 1)


CODEBOOKS = {"nvfp4": "e2m1", "fp8-block": "e4m3", "fp8-static": "e4m3", "mxfp8": "e4m3"}


@pytest.mark.parametrize("name", CODEBOOKS)
def test_codebooks_are_compared_by_their_bits_and_effective_scales(name: str) -> None:
    tensor = random_weight(WITH_ACTIVATIONS[name], 200, 256, scale_dtype=np.float32)
    assert compare_weights("w", tensor, tensor).state == "equal"
    codes = changed(tensor.codes, 150, 7, tensor.codes[150, 7] ^ 1)
    state = compare_weights("w", tensor, replace(tensor, codes=codes))
    assert (state.state, state.mismatched) == ("different", 1)
    assert [(m.row, m.column, m.what) for m in state.first] == [(150, 7, "integer")]
    scale = tensor.scale.copy()
    scale[0, 0] = scale[0, 0] * scale.dtype.type(2)
    state = compare_weights("w", tensor, replace(tensor, scale=scale))
    assert (state.state, state.first[0].what) == ("different", "scale")


@pytest.mark.parametrize("name", CODEBOOKS)
def test_floats_that_became_codebook_values_are_the_nearest(name: str) -> None:
    """Moved by a third of the way to the next value, each is still the nearest; by two, not."""
    tensor = random_weight(WITH_ACTIVATIONS[name], 40, 256, scale_dtype=np.float32)
    assert isinstance(tensor.scheme, CodebookScheme)
    values = codebook_values(tensor.scheme.codebook)
    levels = np.unique(values[np.isfinite(values)])
    at = np.searchsorted(levels, values[tensor.codes.view(np.uint8)])
    step = levels[np.minimum(at + 1, len(levels) - 1)] - levels[at]
    per_column = tensor.effective_scale()[:, tensor.column_groups()]
    for share, state in ((0.3, "requantized"), (0.7, "different")):
        floats = tensor.dequantize() + (np.float32(share) * step * per_column).astype(np.float32)
        assert compare_weights("w", floats, tensor).state == state


@pytest.mark.parametrize("scheme", [IntScheme(8, True, PerChannel()), "e4m3"])
def test_finer_numbers_may_be_rounded_and_each_must_be_the_nearest(scheme: Any) -> None:
    """Formats that could hold the reference must hold it, whatever is near."""
    random = np.random.default_rng(3)
    codes = random.integers(0, 100, (ROWS, COLUMNS), dtype=np.int8)
    scale = random.uniform(0.01, 0.1, (ROWS, 1)).astype(np.float32)
    fine = CodebookScheme("e4m3", PerChannel()) if scheme == "e4m3" else scheme
    reference = QuantizedTensor(fine, codes, scale)
    values = reference.dequantize()
    step = np.abs(values).max(axis=1, keepdims=True) / 7
    coarse = np.rint(values / step).astype(np.int8)
    stored = QuantizedTensor(IntScheme(4, True, PerChannel()), coarse, step.astype(np.float32))
    assert compare_weights("w", reference, stored).state == "requantized"
    off = changed(coarse, 2, 5, coarse[2, 5] + (1 if coarse[2, 5] < 7 else -1))
    wrong = compare_weights("w", reference, replace(stored, codes=off))
    assert (wrong.state, wrong.mismatched) == ("different", 1)
    assert (wrong.first[0].row, wrong.first[0].column) == (2, 5)
    scaled = replace(stored, scale=stored.scale * np.float32(1.0001))
    assert compare_weights("w", stored, scaled).state == "different"
