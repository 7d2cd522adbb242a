"""Codes of 2 to 8 bits as a dense stream of bits in int32 words.

Layout along the packed axis: code i takes bits [i*b, (i+1)*b) of the stream; bit 0 is the lowest
bit of word 0. Codes of 3, 5, 6 and 7 bits straddle words; 32 codes always fill b words. The last
word is padded with zeros. This is the layout of compressed-tensors `weight_packed` (in columns) and
`weight_zero_point` (in rows), and of GPTQ `qweight` and `qzeros`.
"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

MIN_BITS, MAX_BITS = 2, 8


class _Chunk(NamedTuple):
    """The fewest codes that fill whole bytes, handled as one integer of type `wide`."""

    codes: int
    bytes: int
    wide: type[np.unsignedinteger[Any]]


def _chunk_of(num_bits: int) -> _Chunk:
    if 8 % num_bits == 0:
        return _Chunk(8 // num_bits, 1, np.uint8)
    return _Chunk(8, num_bits, np.uint64)


def packed_words(count: int, num_bits: int) -> int:
    """How many int32 words hold `count` codes."""
    return -(-count * num_bits // 32)


def pack(codes: npt.NDArray[np.uint8], num_bits: int, axis: int = -1) -> npt.NDArray[np.int32]:
    """Pack unsigned codes; `axis` of length n becomes one of ceil(n * num_bits / 32) words."""
    _check_bits(num_bits)
    assert codes.size == 0 or int(codes.max()) < 1 << num_bits, "a code is wider than its bits"
    rows = np.moveaxis(codes, axis, -1)
    stream = _chunks_to_bytes(_pad_last(rows, _chunk_of(num_bits).codes), num_bits)
    wanted = packed_words(rows.shape[-1], num_bits) * 4
    words = np.ascontiguousarray(_pad_last(stream, 4)[..., :wanted]).view("<u4").view("<i4")
    return np.ascontiguousarray(np.moveaxis(words, -1, axis)).astype(np.int32, copy=False)


def unpack(
    words: npt.NDArray[np.int32], num_bits: int, count: int, axis: int = -1
) -> npt.NDArray[np.uint8]:
    """The first `count` unsigned codes of each stream of words along `axis`."""
    _check_bits(num_bits)
    rows = np.ascontiguousarray(np.moveaxis(words, axis, -1), dtype="<i4")
    assert rows.shape[-1] == packed_words(count, num_bits), "word count does not match the codes"
    stream = _pad_last(rows.view(np.uint8), _chunk_of(num_bits).bytes)
    codes = _bytes_to_chunks(stream, num_bits)[..., :count]
    return np.ascontiguousarray(np.moveaxis(codes, -1, axis))


def pack_signed(
    codes: npt.NDArray[np.int8], num_bits: int, axis: int = -1
) -> npt.NDArray[np.int32]:
    """Pack signed codes, stored with 2**(num_bits - 1) added."""
    offset = np.uint8(1 << (num_bits - 1))
    return pack(codes.view(np.uint8) + offset, num_bits, axis)


def unpack_signed(
    words: npt.NDArray[np.int32], num_bits: int, count: int, axis: int = -1
) -> npt.NDArray[np.int8]:
    """Inverse of `pack_signed`."""
    offset = np.uint8(1 << (num_bits - 1))
    return (unpack(words, num_bits, count, axis) - offset).view(np.int8)


def _chunks_to_bytes(codes: npt.NDArray[np.uint8], num_bits: int) -> npt.NDArray[np.uint8]:
    """Codes to bytes along the last axis, which holds whole chunks."""
    chunk = _chunk_of(num_bits)
    chunks = codes.reshape(*codes.shape[:-1], -1, chunk.codes)
    joined = np.zeros(chunks.shape[:-1], dtype=np.dtype(chunk.wide).newbyteorder("<"))
    for i in range(chunk.codes):
        joined |= chunks[..., i].astype(chunk.wide) << chunk.wide(i * num_bits)
    as_bytes = joined.view(np.uint8).reshape(*joined.shape, -1)[..., : chunk.bytes]
    return as_bytes.reshape(*codes.shape[:-1], -1)


def _bytes_to_chunks(stream: npt.NDArray[np.uint8], num_bits: int) -> npt.NDArray[np.uint8]:
    """Inverse of `_chunks_to_bytes`."""
    chunk = _chunk_of(num_bits)
    chunks = stream.reshape(*stream.shape[:-1], -1, chunk.bytes)
    wide = np.zeros((*chunks.shape[:-1], np.dtype(chunk.wide).itemsize), dtype=np.uint8)
    wide[..., : chunk.bytes] = chunks
    joined = wide.view(np.dtype(chunk.wide).newbyteorder("<"))[..., 0]
    codes = np.empty((*joined.shape, chunk.codes), dtype=np.uint8)
    mask = chunk.wide((1 << num_bits) - 1)
    for i in range(chunk.codes):
        codes[..., i] = (joined >> chunk.wide(i * num_bits)) & mask
    return codes.reshape(*stream.shape[:-1], -1)


def _pad_last(array: npt.NDArray[np.uint8], multiple: int) -> npt.NDArray[np.uint8]:
    missing = -array.shape[-1] % multiple
    if not missing:
        return array
    return np.pad(array, [(0, 0)] * (array.ndim - 1) + [(0, missing)])


def _check_bits(num_bits: int) -> None:
    assert MIN_BITS <= num_bits <= MAX_BITS, f"cannot pack {num_bits} bits"
