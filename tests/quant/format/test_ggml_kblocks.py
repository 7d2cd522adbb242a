"""Blocks with nested scales against gguf's own readers, bit by bit, and against plain words."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.format.ggml_kblocks import (
    BLOCK,
    LAYOUTS,
    NestedScales,
    decode_kblocks,
    encode_kblocks,
    nested_scales,
    quantized_tensor,
)
from quant.format.gguf_types import IQ4_XS, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, GgmlType
from quant.format.scheme import CodebookScheme

gguf = pytest.importorskip("gguf")

KINDS = list(LAYOUTS)
Bytes = npt.NDArray[np.uint8]


def random_bytes(kind: GgmlType, rows: int, blocks: int, seed: int = 0) -> Bytes:
    random = np.random.default_rng(seed)
    return random.integers(0, 256, (rows, blocks * kind.block_bytes)).astype(np.uint8)


def finite_blocks(kind: GgmlType, rows: int, blocks: int, seed: int = 0) -> Bytes:
    """Random codes and nested scales under factors that are ordinary numbers."""
    random = np.random.default_rng(seed)
    data = random_bytes(kind, rows, blocks, seed).reshape(-1, kind.block_bytes)
    at = 0
    for name, size in LAYOUTS[kind].fields:
        if name in ("d", "m"):
            factors = (random.standard_normal(len(data)) * 0.01).astype(np.float16)
            data[:, at : at + 2] = factors.view(np.uint8).reshape(-1, 2)
        at += size
    return data.reshape(rows, -1)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_fields_fill_a_block(kind: GgmlType) -> None:
    assert sum(size for _, size in LAYOUTS[kind].fields) == kind.block_bytes


@pytest.mark.parametrize("kind", KINDS, ids=str)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_any_bytes_mean_what_gguf_reads_in_them(kind: GgmlType, seed: int) -> None:
    data = random_bytes(kind, 2, 2, seed)
    tensor = decode_kblocks(kind, data, (2, 2 * BLOCK))
    with np.errstate(all="ignore"):
        expected = gguf.quants.dequantize(data, gguf.GGMLQuantizationType(kind.id))
        ours = tensor.dequantize()
    assert np.array_equal(ours, expected, equal_nan=True)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_encoding_what_was_decoded_gives_the_same_bytes(kind: GgmlType, seed: int) -> None:
    data = random_bytes(kind, 3, 2, seed)
    tensor = decode_kblocks(kind, data, (3, 2 * BLOCK))
    assert np.array_equal(encode_kblocks(kind, tensor.codes, nested_scales(kind, data)), data)
    assert tensor.blocks is not None and np.array_equal(tensor.blocks.data, data)
    assert tensor.blocks.type_name == kind.name


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_codes_lie_in_the_range_of_their_scheme(kind: GgmlType) -> None:
    codes = decode_kblocks(kind, random_bytes(kind, 8, 4), (8, 4 * BLOCK)).codes
    scheme = LAYOUTS[kind].scheme
    lowest, highest = 0, (1 << scheme.num_bits) - 1
    if scheme.symmetric and not isinstance(scheme, CodebookScheme):
        lowest, highest = scheme.qmin, scheme.qmax
    assert codes.min() == lowest and codes.max() == highest


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_rows_of_blocks_are_picked_with_the_rows(kind: GgmlType) -> None:
    tensor = decode_kblocks(kind, finite_blocks(kind, 4, 1), (4, BLOCK))
    order = np.array([2, 0, 3, 1])
    picked = tensor.take_rows(order)
    assert picked.blocks is not None
    again = decode_kblocks(kind, picked.blocks.data, (4, BLOCK))
    assert np.array_equal(again.dequantize(), tensor.dequantize()[order])
    assert np.array_equal(again.codes, picked.codes)


def test_the_golden_vector_of_six_bit_scales() -> None:
    scales = np.array([[1, 2, 3, 4, 37, 38, 39, 40]], np.int8)
    minimums = np.array([[5, 6, 7, 8, 57, 58, 59, 60]], np.uint8)
    one = np.ones((1, 1), np.float16)
    nested = NestedScales(one, scales, one, minimums)
    for kind in (Q4_K, Q5_K):
        block = encode_kblocks(kind, np.zeros((1, BLOCK), np.int8), nested)
        assert block[0, 4:16].tobytes().hex(" ") == "81 82 83 84 c5 c6 c7 c8 95 a6 b7 c8"
        back = nested_scales(kind, block)
        assert np.array_equal(back.sub_scales, scales)
        assert back.sub_minimums is not None and np.array_equal(back.sub_minimums, minimums)


def slow_value(kind: GgmlType, block: Bytes, i: int) -> np.float32:
    """Element i of one block, after the comments of ggml-common.h, in Python integers."""

    def half(at: int) -> np.float32:
        return np.float32(np.frombuffer(block[at : at + 2].tobytes(), "<f2")[0])

    b = [int(x) for x in block]
    if kind == Q6_K:
        part, within = divmod(i, 128)
        run, at = divmod(within, 32)
        low = b[64 * part + 32 * (run % 2) + at] >> (4 * (run // 2)) & 15
        high = b[128 + 32 * part + at] >> (2 * run) & 3
        scale = int(np.int8(np.uint8(b[192 + i // 16])))
        return half(208) * np.float32(scale) * np.float32((low | high << 4) - 32)
    if kind == Q2_K:
        part, within = divmod(i, 128)
        run, at = divmod(within, 32)
        code = b[16 + 32 * part + at] >> (2 * run) & 3
        scale, least = b[i // 16] & 15, b[i // 16] >> 4
        d = half(80) * np.float32(scale)
        return np.float32(d * np.float32(code)) - half(82) * np.float32(least)
    raise AssertionError(kind)


@pytest.mark.parametrize("kind", [Q2_K, Q6_K], ids=str)
def test_blocks_by_the_words_of_their_definition(kind: GgmlType) -> None:
    data = finite_blocks(kind, 1, 1, seed=5)
    values = decode_kblocks(kind, data, (1, BLOCK)).dequantize()[0]
    assert [float(v) for v in values] == [float(slow_value(kind, data[0], i)) for i in range(BLOCK)]


@pytest.mark.parametrize("kind", [Q3_K, IQ4_XS], ids=str)
def test_signed_nested_scales_reach_both_ends(kind: GgmlType) -> None:
    groups = BLOCK // LAYOUTS[kind].group
    scales = np.resize(np.array([-32, 31, 0, -1, 1, 16, -17, 5], np.int8), (1, groups))
    d = np.full((1, 1), 0.5, np.float16)
    tensor = quantized_tensor(kind, np.ones((1, BLOCK), np.int8), NestedScales(d, scales))
    assert np.array_equal(tensor.scale, 0.5 * scales.astype(np.float32))
    assert tensor.blocks is not None
    assert np.array_equal(nested_scales(kind, tensor.blocks.data).sub_scales, scales)
