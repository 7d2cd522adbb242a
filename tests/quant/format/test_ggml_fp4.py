"""4-bit floats: the bytes of ggml's own package, and the codes of checkpoints untouched."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.format.errors import UnsupportedModelError
from quant.format.ggml_again import exact_blocks, rounded_again
from quant.format.ggml_fp4 import SCHEMES, decode_fp4, encode_fp4, round_mxfp4
from quant.format.gguf_blocks import decode, encode, lossless_type
from quant.format.gguf_rounding import round_to
from quant.format.gguf_types import MXFP4, NVFP4, GgmlType
from quant.format.scheme import ActivationScheme, CodebookScheme, IntScheme, PerGroup
from quant.format.tensor import QuantizedTensor

gguf = pytest.importorskip("gguf")


def random_tensor(kind: GgmlType, rows: int = 3, columns: int = 128) -> QuantizedTensor:
    random, scheme = np.random.default_rng(5), SCHEMES[kind]
    groups = scheme.groups(columns)
    codes = random.integers(0, 16, (rows, columns)).astype(np.int8)
    bits = random.integers(110, 130, (rows, groups)) if kind == MXFP4 else None
    if bits is None:
        bits = random.integers(1, 0x7E, (rows, groups))
    dtype = ml_dtypes.float8_e8m0fnu if kind == MXFP4 else ml_dtypes.float8_e4m3fn
    scale = bits.astype(np.uint8).view(dtype)
    return QuantizedTensor(scheme, codes, scale, global_scale=None if kind == MXFP4 else 1.0)


@pytest.mark.parametrize("kind", [MXFP4, NVFP4], ids=str)
def test_blocks_are_what_the_reader_of_gguf_reads(kind: GgmlType) -> None:
    tensor = random_tensor(kind)
    data = encode_fp4("w", kind, tensor)
    theirs = gguf.quants.dequantize(data, gguf.GGMLQuantizationType(kind.id))
    assert np.array_equal(theirs.reshape(tensor.shape), tensor.dequantize())
    again = decode_fp4(kind, data, tensor.shape)
    assert np.array_equal(again.codes, tensor.codes)
    assert np.array_equal(again.scale.view(np.uint8), tensor.scale.view(np.uint8))
    assert again.scheme == tensor.scheme and again.global_scale == tensor.global_scale


@given(
    seed=st.integers(0, 2**32 - 1),
    power=st.integers(-40, 30),
    halves=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_floats_are_rounded_to_the_bytes_of_the_reference(
    seed: int, power: int, halves: bool
) -> None:
    """halves: numbers in the middle between two values, which go to the smaller one."""
    random = np.random.default_rng(seed)
    blocks = random.standard_normal((4, 32)).astype(np.float32)
    if halves:
        blocks = (np.round(blocks * 8) / 4).astype(np.float32)
    blocks = np.ldexp(blocks, power).astype(np.float32)
    blocks[1] = 0
    theirs = gguf.quants.quantize(blocks, gguf.GGMLQuantizationType.MXFP4)
    found = round_mxfp4(blocks)
    # A zero has two codes: the reference takes the first, whatever the sign.
    assert np.array_equal(found, theirs)


def test_magnitudes_just_below_a_power_of_two_are_as_in_single_precision() -> None:
    below = np.nextafter(np.float32(2) ** np.arange(-20, 20, dtype=np.float32), np.float32(0))
    blocks = np.repeat(below[:, None], 32, axis=1)
    theirs = gguf.quants.quantize(blocks, gguf.GGMLQuantizationType.MXFP4)
    assert np.array_equal(round_mxfp4(blocks), theirs)


def test_codes_of_checkpoints_are_kept_bit_for_bit() -> None:
    tensor = random_tensor(MXFP4)
    activation = ActivationScheme("e2m1", PerGroup(32))
    asked = CodebookScheme("e2m1", PerGroup(32), scales="e8m0", activation=activation)
    assert lossless_type(asked, 128) == (MXFP4, "the same codes and scales")
    assert lossless_type(asked, 100)[0] != MXFP4
    data = encode("w", MXFP4, tensor)
    again = decode(MXFP4, data, tensor.shape)
    assert isinstance(again, QuantizedTensor) and np.array_equal(again.codes, tensor.codes)
    assert np.array_equal(again.dequantize(), tensor.dequantize())
    assert exact_blocks("w", MXFP4, tensor) is not None


def test_what_is_something_else_is_rounded() -> None:
    random = np.random.default_rng(6)
    codes = random.integers(-8, 8, (2, 64)).astype(np.int8)
    weight = QuantizedTensor(
        IntScheme(4, True, PerGroup(64)), codes, np.full((2, 1), 0.01, np.float16)
    )
    assert exact_blocks("w", MXFP4, weight) is None
    found = rounded_again("w", MXFP4, weight)
    assert np.array_equal(encode("w", MXFP4, found), round_to("w", MXFP4, weight.dequantize()))


def test_what_blocks_cannot_say_is_refused() -> None:
    tensor = random_tensor(NVFP4)
    tensor.scale.view(np.uint8)[0, 0] |= 0x80
    with pytest.raises(UnsupportedModelError, match="'w' has scales below 0"):
        encode_fp4("w", NVFP4, tensor)
    with pytest.raises(UnsupportedModelError, match="'w' holds numbers that are not finite"):
        round_to("w", MXFP4, np.full((1, 32), np.nan, np.float32))
