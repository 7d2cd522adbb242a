"""How numbers lie in an ONNX tensor's bytes."""

import math

import numpy as np
import numpy.typing as npt

FP8 = "float8e4m3fn"
BITS = {
    "int4": 4,
    "int8": 8,
    FP8: 8,
    "bool": 8,
    "float16": 16,
    "bfloat16": 16,
    "float32": 32,
    "int64": 64,
}


def packed_bytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor's elements; two of four bits share a byte, the last may have its own."""
    return bytes_of(shape, BITS[dtype])


def bytes_of(shape: tuple[int, ...], bits: int) -> int:
    """Bytes of elements of so many bits, packed one after the other."""
    return (math.prod(shape) * bits + 7) // 8


def pack_int4(codes: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Two's complement nibbles of `codes` in C order, the first of each pair in the low half."""
    flat = codes.reshape(-1).view(np.uint8) & np.uint8(0xF)
    if flat.size % 2:
        flat = np.append(flat, np.uint8(0))
    packed: npt.NDArray[np.uint8] = flat[::2] | (flat[1::2] << np.uint8(4))
    return packed


def unpack_int4(data: npt.NDArray[np.uint8], shape: tuple[int, ...]) -> npt.NDArray[np.int8]:
    """What `pack_int4` packed."""
    nibbles = np.empty(data.size * 2, np.uint8)
    nibbles[::2], nibbles[1::2] = data & 0xF, data >> 4
    signed = ((nibbles ^ 8).view(np.int8) - np.int8(8)).astype(np.int8)
    return signed[: math.prod(shape)].reshape(shape)
