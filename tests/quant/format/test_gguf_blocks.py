"""Block codecs against a slow element-by-element reading of the format, and against gguf."""

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from quant.format.errors import UnsupportedModelError
from quant.format.gguf_blocks import LAYOUTS, decode, encode, lossless_type, scheme_of
from quant.format.gguf_rounding import round_to
from quant.format.gguf_types import (
    BF16,
    F16,
    F32,
    IQ4_NL,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q6_K,
    Q8_0,
    GgmlType,
)
from quant.format.scheme import CodebookScheme, FloatScheme, IntScheme, PerChannel, PerGroup
from quant.format.tensor import QuantizedTensor

BLOCK_TYPES = [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0]
Bytes = npt.NDArray[np.uint8]


def slow_block(kind: GgmlType, block: bytes) -> list[float]:
    """The 32 numbers of one block, bit by bit as ggml-quants.c describes it."""

    def half(at: int) -> np.float32:
        return np.float32(np.frombuffer(block[at : at + 2], "<f2")[0])

    scale = half(0)
    if kind is Q8_0:
        return [float(scale * np.float32(b - 256 if b > 127 else b)) for b in block[2:]]
    minimum = half(2) if kind in (Q4_1, Q5_1) else np.float32(0)
    body = block[4:] if kind in (Q4_1, Q5_1) else block[2:]
    high = int.from_bytes(body[:4], "little") if kind in (Q5_0, Q5_1) else 0
    nibbles = body[-16:]
    offset = {Q4_0: 8, Q5_0: 16}.get(kind, 0)
    values = []
    for j in range(32):
        code = nibbles[j] & 15 if j < 16 else nibbles[j - 16] >> 4
        code += (high >> j & 1) << 4
        values.append(float(scale * np.float32(code - offset) + minimum))
    return values


def finite_blocks(kind: GgmlType, rows: int, columns: int, seed: int) -> Bytes:
    """Random codes under random finite scales, signs and all."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (rows * columns // 32, kind.block_bytes), dtype=np.uint8)
    heads = (LAYOUTS[kind].head_bytes) // 2
    scales = (random.standard_normal((len(blocks), heads)) * 0.1).astype("<f2")
    blocks[:, : 2 * heads] = scales.view(np.uint8)
    return blocks.reshape(-1)


@pytest.mark.parametrize("kind", BLOCK_TYPES, ids=str)
@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32), rows=st.integers(1, 4), blocks=st.integers(1, 3))
def test_decode_is_the_slow_reading_and_encode_inverts_it(
    kind: GgmlType, seed: int, rows: int, blocks: int
) -> None:
    data = finite_blocks(kind, rows, 32 * blocks, seed)
    tensor = decode(kind, data, (rows, 32 * blocks))
    assert isinstance(tensor, QuantizedTensor)
    slow = [
        value
        for start in range(0, len(data), kind.block_bytes)
        for value in slow_block(kind, data[start : start + kind.block_bytes].tobytes())
    ]
    assert tensor.dequantize().reshape(-1).tolist() == slow
    assert encode("t", kind, tensor).tobytes() == data.tobytes()


@pytest.mark.parametrize("kind", BLOCK_TYPES, ids=str)
@settings(max_examples=60, deadline=None)
@given(
    weight=hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=3).map(lambda s: (s[0], 32 * s[1])),
        elements=st.one_of(
            st.floats(-4, 4, width=32),
            st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 2.0**-24, 1e-30, 500.0]),
        ),
    )
)
def test_rounding_is_bit_identical_to_the_reference(
    kind: GgmlType, weight: npt.NDArray[np.float32]
) -> None:
    gguf = pytest.importorskip("gguf")
    ours = round_to("t", kind, weight)
    with np.errstate(all="ignore"):
        theirs = gguf.quants.quantize(weight, gguf.GGMLQuantizationType(kind.id))
    # A scale below float32's reciprocal range is undefined there, and zero here.
    if np.abs(weight[weight != 0]).min(initial=1) > 1e-36:
        assert ours.tobytes() == theirs.tobytes()
    dequantized = gguf.quants.dequantize(ours, gguf.GGMLQuantizationType(kind.id))
    tensor = decode(kind, ours.reshape(-1), weight.shape)
    assert isinstance(tensor, QuantizedTensor)
    assert np.array_equal(tensor.dequantize(), dequantized)


def test_rounding_in_chunks_is_rounding_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.random.default_rng(0).standard_normal((7, 64)).astype(np.float32)
    whole = round_to("t", Q4_0, weight)
    monkeypatch.setattr("quant.format.gguf_rounding.CHUNK_ELEMENTS", 100)
    assert np.array_equal(round_to("t", Q4_0, weight), whole)


@pytest.mark.parametrize("kind", BLOCK_TYPES, ids=str)
def test_tiny_and_zero_blocks_become_zero_without_a_warning(kind: GgmlType) -> None:
    weight = np.zeros((2, 32), np.float32)
    weight[1] = np.float32(1e-42)
    tensor = decode(kind, round_to("t", kind, weight).reshape(-1), weight.shape)
    assert isinstance(tensor, QuantizedTensor)
    assert not tensor.dequantize().any()


@pytest.mark.parametrize("kind", [*BLOCK_TYPES, F32, F16, BF16], ids=str)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(kind: GgmlType, value: float) -> None:
    weight = np.ones((1, 32), np.float32)
    weight[0, 5] = value
    with pytest.raises(UnsupportedModelError, match=r"'layer\.weight'"):
        round_to("layer.weight", kind, weight)


@pytest.mark.parametrize("kind", [*BLOCK_TYPES, F16], ids=str)
def test_numbers_beyond_float16_are_refused(kind: GgmlType) -> None:
    weight = np.full((1, 32), 1e9, np.float32)
    weight[0, 0] = -3e9
    with pytest.raises(UnsupportedModelError, match=r"'layer\.weight'"):
        round_to("layer.weight", kind, weight)


@pytest.mark.parametrize("kind", [F32, F16, BF16], ids=str)
def test_floats_are_views_of_the_file(kind: GgmlType) -> None:
    stored = round_to("t", kind, np.arange(6, dtype=np.float32).reshape(2, 3))
    values = decode(kind, stored.reshape(-1), (2, 3))
    assert isinstance(values, np.ndarray)
    assert values.astype(np.float32).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert np.shares_memory(values, stored)


def quantized(
    scheme: IntScheme, rows: int, columns: int, seed: int, scale_dtype: Any = np.float16
) -> QuantizedTensor:
    """A random tensor of any integer scheme."""
    random = np.random.default_rng(seed)
    lowest, highest = scheme.qmin, scheme.qmax + 1
    codes = random.integers(lowest, highest, (rows, columns))
    groups = (rows, scheme.groups(columns))
    scale = random.uniform(0.001, 0.1, groups).astype(scale_dtype)
    zero = None if scheme.symmetric else random.integers(lowest, highest, groups).astype(np.int8)
    return QuantizedTensor(scheme, codes.astype(np.int8), scale, zero)


SCHEMES = st.builds(
    IntScheme,
    st.integers(2, 8),
    st.booleans(),
    st.one_of(st.just(PerChannel()), st.sampled_from([32, 64, 96, 128]).map(PerGroup)),
)


@settings(max_examples=80, deadline=None)
@given(
    scheme=SCHEMES,
    rows=st.integers(1, 4),
    blocks=st.integers(1, 5),
    seed=st.integers(0, 2**32),
    scale_dtype=st.sampled_from([np.float16, ml_dtypes.bfloat16]),
)
def test_lossless_types_hold_exactly_the_same_numbers(
    scheme: IntScheme, rows: int, blocks: int, seed: int, scale_dtype: Any
) -> None:
    """Every integer scheme, also with a short last group, read back by the gguf package."""
    gguf = pytest.importorskip("gguf")
    tensor = quantized(scheme, rows, 32 * blocks, seed, scale_dtype)
    kind, reason = lossless_type(scheme, 32 * blocks)
    assert reason
    if kind is F32:
        assert scheme.num_bits == 8 and not scheme.symmetric
        return
    data = encode("t", kind, tensor)
    assert data.nbytes == kind.nbytes(tensor.shape)
    theirs = gguf.quants.dequantize(data, gguf.GGMLQuantizationType(kind.id))
    assert np.array_equal(theirs, tensor.dequantize())


@pytest.mark.parametrize(
    ("scheme", "columns", "kind"),
    [
        (IntScheme(4, True, PerGroup(32)), 64, Q4_0),
        (IntScheme(4, True, PerGroup(128)), 192, Q4_0),
        (IntScheme(4, True, PerChannel()), 96, Q4_0),
        (IntScheme(4, False, PerGroup(64)), 64, Q5_0),
        (IntScheme(3, True, PerGroup(64)), 64, Q4_0),
        (IntScheme(3, False, PerGroup(64)), 64, Q4_0),
        (IntScheme(2, False, PerGroup(64)), 64, Q4_0),
        (IntScheme(5, True, PerGroup(64)), 64, Q5_0),
        (IntScheme(5, False, PerGroup(64)), 64, Q8_0),
        (IntScheme(7, False, PerGroup(64)), 64, Q8_0),
        (IntScheme(8, True, PerChannel()), 64, Q8_0),
        (IntScheme(8, False, PerChannel()), 64, F32),
        (IntScheme(4, True, PerGroup(48)), 96, F32),
        (IntScheme(4, True, PerGroup(16)), 64, F32),
        (IntScheme(4, True, PerChannel()), 48, F32),
        (IntScheme(4, True, PerGroup(100)), 96, Q4_0),
        (FloatScheme("bfloat16"), 7, BF16),
        (FloatScheme("float16"), 7, F16),
        (FloatScheme("float32"), 7, F32),
    ],
    ids=str,
)
def test_lossless_type(scheme: IntScheme | FloatScheme, columns: int, kind: GgmlType) -> None:
    assert lossless_type(scheme, columns)[0] is kind


def test_code_minus_128_is_kept() -> None:
    tensor = quantized(IntScheme(8, True, PerChannel()), 1, 32, 0)
    tensor.codes[0, :2] = -128, 127
    back = decode(Q8_0, encode("t", Q8_0, tensor).reshape(-1), (1, 32))
    assert isinstance(back, QuantizedTensor)
    assert back.codes[0, :2].tolist() == [-128, 127]


@pytest.mark.parametrize("scale", [1.0 + 2**-12, 1e6, 2.0**-26, np.nan, np.inf])
def test_scales_that_float16_cannot_hold_are_refused(scale: float) -> None:
    tensor = quantized(IntScheme(4, True, PerGroup(32)), 2, 64, 0, np.float32)
    tensor.scale[:] = 0.5
    tensor.scale[1, 1] = scale
    with pytest.raises(UnsupportedModelError, match=r"'layer\.weight' has 1 blocks whose scale"):
        encode("layer.weight", Q4_0, tensor)


def test_a_scale_that_multiplies_only_zeros_does_not_matter() -> None:
    tensor = quantized(IntScheme(4, True, PerGroup(32)), 1, 64, 0, np.float32)
    tensor.scale[:] = 0.5, 1e-12
    tensor.codes[0, 32:] = 0
    back = decode(Q4_0, encode("t", Q4_0, tensor).reshape(-1), (1, 64))
    assert isinstance(back, QuantizedTensor)
    assert np.array_equal(back.dequantize(), tensor.dequantize())


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_column_orders_are_kept_or_refused(seed: int) -> None:
    """A saved order is representable exactly when no block of 32 columns mixes groups."""
    random = np.random.default_rng(seed)
    tensor = quantized(IntScheme(4, True, PerGroup(32)), 2, 96, seed)
    index = random.permutation(3).repeat(32)
    if seed % 2:
        index[random.integers(0, 96)] = random.integers(0, 3)
    tensor = QuantizedTensor(
        tensor.scheme, tensor.codes, tensor.scale, group_index=index.astype(np.int32)
    )
    if (index.reshape(3, 32) == index.reshape(3, 32)[:, :1]).all():
        back = decode(Q4_0, encode("t", Q4_0, tensor).reshape(-1), (2, 96))
        assert isinstance(back, QuantizedTensor)
        assert np.array_equal(back.dequantize(), tensor.dequantize())
    else:
        with pytest.raises(UnsupportedModelError, match="'t' mixes groups"):
            encode("t", Q4_0, tensor)


def test_codes_that_do_not_fit_are_refused() -> None:
    tensor = quantized(IntScheme(8, True, PerChannel()), 1, 32, 0)
    with pytest.raises(UnsupportedModelError, match="'t' has codes"):
        encode("t", Q4_0, tensor)
    with pytest.raises(UnsupportedModelError, match="'t' "):
        encode("t", Q4_1, tensor)


def test_schemes_of_types() -> None:
    assert scheme_of(Q4_1) == IntScheme(4, False, PerGroup(32), ggml_type="Q4_1")
    assert scheme_of(Q8_0) == IntScheme(8, True, PerGroup(32), ggml_type="Q8_0")
    assert scheme_of(Q6_K) == IntScheme(6, True, PerGroup(16), ggml_type="Q6_K")
    assert scheme_of(IQ4_NL) == CodebookScheme("iq4_nl", PerGroup(32), ggml_type="IQ4_NL")
    assert scheme_of(BF16) == FloatScheme("bfloat16")
    assert scheme_of(GgmlType("IQ2_XS", 17, 256, 74)) is None
