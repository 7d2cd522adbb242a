"""Packing: golden words, and a slow bit-by-bit writer as the second implementation."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.format.packing import pack, pack_signed, packed_words, unpack, unpack_signed

BITS = range(2, 9)


def words_hex(words: npt.NDArray[np.int32]) -> list[str]:
    return [f"{word & 0xFFFFFFFF:08x}" for word in words.ravel().tolist()]


def pack_bit_by_bit(codes: list[int], num_bits: int) -> list[int]:
    """The stream as one big Python integer, cut in words."""
    stream = 0
    for i, code in enumerate(codes):
        for bit in range(num_bits):
            if code >> bit & 1:
                stream |= 1 << (i * num_bits + bit)
    count = -(-len(codes) * num_bits // 32)
    return [stream >> (32 * i) & 0xFFFFFFFF for i in range(count)]


def test_golden_signed_int4() -> None:
    codes = np.arange(-8, 0, dtype=np.int8)[None]
    assert words_hex(pack_signed(codes, 4)) == ["76543210"]


def test_golden_int8() -> None:
    assert words_hex(pack(np.array([[0, 1, 2, 3]], np.uint8), 8)) == ["03020100"]


def test_golden_int3_straddles_words() -> None:
    codes = (np.arange(32) % 8).astype(np.uint8)[None]
    assert words_hex(pack(codes, 3)) == ["88fac688", "c688fac6", "fac688fa"]


@given(
    num_bits=st.sampled_from(list(BITS)),
    rows=st.integers(1, 4),
    columns=st.integers(1, 77),
    axis=st.sampled_from([0, 1, -1]),
    seed=st.integers(0, 2**32 - 1),
)
def test_pack_agrees_with_bit_by_bit_and_round_trips(
    num_bits: int, rows: int, columns: int, axis: int, seed: int
) -> None:
    codes = np.random.default_rng(seed).integers(0, 1 << num_bits, (rows, columns), dtype=np.uint8)
    words = pack(codes, num_bits, axis)
    along, packed = (codes.T, words.T) if axis == 0 else (codes, words)
    assert [[w & 0xFFFFFFFF for w in row] for row in packed.tolist()] == [
        pack_bit_by_bit(row, num_bits) for row in along.tolist()
    ]
    assert packed.shape[1] == packed_words(along.shape[1], num_bits)
    np.testing.assert_array_equal(unpack(words, num_bits, codes.shape[axis], axis), codes)


@pytest.mark.parametrize("num_bits", BITS)
def test_signed_round_trip_holds_every_code(num_bits: int) -> None:
    half = 1 << (num_bits - 1)
    codes = np.arange(-half, half, dtype=np.int8)[None]
    words = pack_signed(codes, num_bits)
    np.testing.assert_array_equal(unpack_signed(words, num_bits, codes.shape[1]), codes)
    assert words.dtype == np.int32


@pytest.mark.parametrize("num_bits", BITS)
def test_compressed_tensors_packs_the_same_words(num_bits: int) -> None:
    torch = pytest.importorskip("torch")
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    half = 1 << (num_bits - 1)
    codes = np.random.default_rng(num_bits).integers(-half, half, (5, 43), dtype=np.int8)
    for axis in (0, 1):
        theirs = helpers.pack_to_int32(torch.from_numpy(codes), num_bits, packed_dim=axis)
        np.testing.assert_array_equal(pack_signed(codes, num_bits, axis), theirs.numpy())
