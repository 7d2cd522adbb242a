"""Rounding: the compressed-tensors rule, in numpy and torch alike."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.format.errors import InputError
from quant.format.rounding import (
    absmax_scale,
    code_range,
    dequantize_codes,
    minmax_scale_zero,
    quantize_codes,
    store_scale,
)

Floats = npt.NDArray[np.float32]
BITS = st.integers(2, 8)
GROUPS = st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=16)


def round_half_even(value: Fraction) -> int:
    """Python's own rounding of an exact number."""
    return round(value)


def groups(values: list[float]) -> Floats:
    return np.array([values], dtype=np.float32)


def test_symmetric_scale_divides_by_half_the_range() -> None:
    absmax = np.array([7.5, 15.0], dtype=np.float32)
    np.testing.assert_array_equal(absmax_scale(absmax, 4), [1.0, 2.0])
    np.testing.assert_array_equal(absmax_scale(absmax, 8), absmax / np.float32(127.5))


@pytest.mark.parametrize("bits", range(2, 9))
def test_zero_groups_get_scale_1_and_the_code_of_zero(bits: int) -> None:
    zeros = np.zeros((3, 4), dtype=np.float32)
    qmin, qmax = code_range(bits)
    scale = absmax_scale(np.abs(zeros).max(1, keepdims=True), bits)
    assert (scale == 1).all()
    assert (quantize_codes(zeros, scale, None, qmin, qmax) == 0).all()
    scale, zero = minmax_scale_zero(zeros.min(1, keepdims=True), zeros.max(1, keepdims=True), bits)
    codes = quantize_codes(zeros, scale, zero, qmin, qmax)
    assert (scale == 1).all()
    assert (codes == zero).all()
    assert (dequantize_codes(codes, scale, zero) == 0).all()


@given(values=GROUPS, bits=BITS)
def test_symmetric_codes_are_the_nearest(values: list[float], bits: int) -> None:
    array = groups(values)
    qmin, qmax = code_range(bits)
    scale = absmax_scale(np.abs(array).max(1, keepdims=True), bits)
    codes = quantize_codes(array, scale, None, qmin, qmax)
    for value, code in zip(array[0], codes[0], strict=True):
        # The quotient is rounded to float32 first: that is the arithmetic of the format.
        quotient = Fraction(float(np.float32(value) / scale[0, 0]))
        assert int(code) == min(max(round_half_even(quotient), qmin), qmax)


@given(values=GROUPS, bits=BITS)
def test_asymmetric_error_is_at_most_one_step(values: list[float], bits: int) -> None:
    """Half a step for the code, half for the zero point, and a few rounding errors of float32."""
    array = groups(values)
    qmin, qmax = code_range(bits)
    scale, zero = minmax_scale_zero(array.min(1, keepdims=True), array.max(1, keepdims=True), bits)
    codes = quantize_codes(array, scale, zero, qmin, qmax)
    assert ((codes >= qmin) & (codes <= qmax) & (codes == np.rint(codes))).all()
    assert ((zero >= qmin) & (zero <= qmax) & (zero == np.rint(zero))).all()
    error = np.abs(dequantize_codes(codes, scale, zero).astype(np.float64) - array)
    assert (error <= scale * (1 + 2.0**-20 * (1 << bits))).all()


@given(values=GROUPS, bits=BITS)
def test_zero_stays_exactly_zero(values: list[float], bits: int) -> None:
    array = groups([*values, 0.0])
    qmin, qmax = code_range(bits)
    scale, zero = minmax_scale_zero(array.min(1, keepdims=True), array.max(1, keepdims=True), bits)
    codes = quantize_codes(array, scale, zero, qmin, qmax)
    assert dequantize_codes(codes, scale, zero)[0, -1] == 0


def test_half_way_goes_to_the_even_code() -> None:
    steps = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], dtype=np.float32)
    codes = quantize_codes(steps, np.ones(1, np.float32), None, -8, 7)
    np.testing.assert_array_equal(codes, [-2, -2, 0, 0, 2, 2])


@given(values=GROUPS, bits=BITS)
def test_torch_and_numpy_agree_bit_by_bit(values: list[float], bits: int) -> None:
    torch = pytest.importorskip("torch")
    array = groups(values)
    tensor = torch.from_numpy(array)
    qmin, qmax = code_range(bits)
    low, high = array.min(1, keepdims=True), array.max(1, keepdims=True)
    scale, zero = minmax_scale_zero(low, high, bits)
    scale_t, zero_t = minmax_scale_zero(torch.from_numpy(low), torch.from_numpy(high), bits)
    np.testing.assert_array_equal(scale_t.numpy(), scale)
    np.testing.assert_array_equal(zero_t.numpy(), zero)
    absmax = np.maximum(np.abs(low), np.abs(high))
    np.testing.assert_array_equal(
        absmax_scale(torch.from_numpy(absmax), bits).numpy(), absmax_scale(absmax, bits)
    )
    codes_t = quantize_codes(tensor, scale_t, zero_t, qmin, qmax)
    codes = quantize_codes(array, scale, zero, qmin, qmax)
    np.testing.assert_array_equal(codes_t.numpy(), codes)
    np.testing.assert_array_equal(
        dequantize_codes(codes_t, scale_t, zero_t).numpy(), dequantize_codes(codes, scale, zero)
    )


@given(values=GROUPS.filter(lambda v: min(v) < max(v)), bits=st.sampled_from([4, 8]))
def test_the_compressed_tensors_package_agrees(values: list[float], bits: int) -> None:
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("compressed_tensors.quantization")
    helpers = pytest.importorskip("compressed_tensors.quantization.utils.helpers")
    array = groups(values)
    low, high = array.min(1, keepdims=True), array.max(1, keepdims=True)
    for symmetric in (True, False):
        args = package.QuantizationArgs(num_bits=bits, symmetric=symmetric, strategy="channel")
        theirs = helpers.calculate_qparams(torch.from_numpy(low), torch.from_numpy(high), args)
        zero: Floats
        if symmetric:
            scale = absmax_scale(np.maximum(np.abs(low), np.abs(high)), bits)
            zero = np.zeros_like(scale)
        else:
            scale, zero = minmax_scale_zero(low, high, bits)
        if theirs[0].item() == torch.finfo(torch.float32).eps:
            continue  # The package puts eps where we put 1: a group without a step.
        np.testing.assert_array_equal(theirs[0].numpy(), scale)
        np.testing.assert_array_equal(theirs[1].numpy().astype(np.float32), zero)


def test_store_scale_rounds_to_nearest() -> None:
    scale = np.array([0.1, 1.0, 3e4], dtype=np.float32)
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float32):
        stored = store_scale(scale, dtype)
        assert stored.dtype == np.dtype(dtype)
        np.testing.assert_array_equal(stored, scale.astype(dtype))


@pytest.mark.parametrize(
    ("value", "dtype", "message"),
    [
        (7e4, np.float16, "70000 does not fit float16"),
        (1e-8, np.float16, "1e-08 becomes 0 in float16"),
        (np.nan, ml_dtypes.bfloat16, "nan does not fit bfloat16"),
        (np.inf, np.float32, "inf does not fit float32"),
        (0.0, np.float32, "0 becomes 0"),
    ],
)
def test_store_scale_refuses_what_is_lost(value: float, dtype: type, message: str) -> None:
    with pytest.raises(InputError, match=message):
        store_scale(np.array([1.0, value], dtype=np.float32), dtype)
