"""Blocks of ggml's plain types: decoded into QuantizedTensor, and encoded from it without loss.

Each run of 32 elements of a row is one block; all numbers are little endian (ggml-quants.c):

    Q4_0  f16 d,                   16 bytes: element j low nibble, j + 16 high   w = d * (q - 8)
    Q4_1  f16 d, f16 m,            the same                                      w = d * q + m
    Q5_0  f16 d,        u32 high,  the same; bit j of `high` is bit 4 of q_j     w = d * (q - 16)
    Q5_1  f16 d, f16 m, u32 high,  the same                                      w = d * q + m
    Q8_0  f16 d, 32 int8                                                         w = d * q
    IQ4_NL is Q4_0 with d times the q-th of 16 levels

Blocks of 256 with nested scales are in ggml_kblocks, of 4-bit floats in ggml_fp4; `decode` and
`encode` take all of them.
"""

from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np
import numpy.typing as npt

from quant.format.errors import UnsupportedModelError
from quant.format.ggml_fp4 import SCHEMES as FP4_SCHEMES
from quant.format.ggml_fp4 import decode_fp4, encode_fp4, holds
from quant.format.ggml_kblocks import LAYOUTS as NESTED_LAYOUTS
from quant.format.ggml_kblocks import decode_kblocks, float16_fields, stored_kblocks
from quant.format.gguf_types import (
    BF16,
    F16,
    F32,
    IQ4_NL,
    MXFP4,
    NVFP4,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    TYPE_BY_NAME,
    GgmlType,
)
from quant.format.scheme import (
    CodebookScheme,
    FloatScheme,
    IntScheme,
    PerChannel,
    PerGroup,
    QuantizedScheme,
    Scheme,
)
from quant.format.stored import PackedRows, Plane, StoredIntegers
from quant.format.tensor import FloatArray, QuantizedTensor, Weight

BLOCK = 32

Bytes = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.int8]


@dataclass(frozen=True)
class BlockLayout:
    """What a block of one type holds. `offset` is subtracted from stored codes to sign them."""

    num_bits: int
    offset: int
    has_minimum: bool

    @property
    def head_bytes(self) -> int:
        return 4 if self.has_minimum else 2


LAYOUTS = {
    Q4_0: BlockLayout(4, 8, False),
    Q4_1: BlockLayout(4, 0, True),
    Q5_0: BlockLayout(5, 16, False),
    Q5_1: BlockLayout(5, 0, True),
    Q8_0: BlockLayout(8, 0, False),
    IQ4_NL: BlockLayout(4, 0, False),
}

SCHEMES: dict[GgmlType, QuantizedScheme] = {
    kind: IntScheme(layout.num_bits, not layout.has_minimum, PerGroup(BLOCK), ggml_type=kind.name)
    for kind, layout in LAYOUTS.items()
}
SCHEMES[IQ4_NL] = CodebookScheme("iq4_nl", PerGroup(BLOCK), ggml_type=IQ4_NL.name)
SCHEMES |= {kind: nested.scheme for kind, nested in NESTED_LAYOUTS.items()}
SCHEMES |= FP4_SCHEMES
"""The scheme of every type that is read as the integers it holds."""

FLOATS = {F32: np.dtype("<f4"), F16: np.dtype("<f2"), BF16: np.dtype(ml_dtypes.bfloat16)}
FLOAT_SCHEMES = {F32: FloatScheme("float32"), F16: FloatScheme("float16")}
FLOAT_SCHEMES[BF16] = FloatScheme("bfloat16")


def scheme_of(kind: GgmlType) -> Scheme | None:
    """The scheme of a type that is decoded without loss; None for all others."""
    return SCHEMES.get(kind) or FLOAT_SCHEMES.get(kind)


def decode(kind: GgmlType, data: Bytes, shape: tuple[int, ...]) -> Weight:
    """A tensor of `shape` from its bytes. Floats are views of `data`, integers are copies."""
    if kind in FLOATS:
        floats: FloatArray = data.view(FLOATS[kind]).reshape(shape)
        return floats
    rows, columns = shape
    if kind in NESTED_LAYOUTS:
        return decode_kblocks(kind, data, (rows, columns))
    if kind in FP4_SCHEMES:
        return decode_fp4(kind, data, (rows, columns))
    layout = LAYOUTS[kind]
    blocks = data.reshape(rows * columns // BLOCK, kind.block_bytes)
    scale = _float16_column(blocks, 0).reshape(rows, columns // BLOCK)
    minimum = None
    if layout.has_minimum:
        minimum = _float16_column(blocks, 2).reshape(rows, columns // BLOCK)
    codes = unpack_codes(layout, blocks[:, layout.head_bytes :]).reshape(rows, columns)
    return QuantizedTensor(SCHEMES[kind], codes, scale, minimum=minimum)


def stored_integers(kind: GgmlType, data: Bytes, shape: tuple[int, int]) -> StoredIntegers | None:
    """The integers of `decode`, still in their bytes; None for floats and codebooks."""
    scheme = SCHEMES.get(kind)
    if not isinstance(scheme, IntScheme):
        return None
    if kind in NESTED_LAYOUTS:
        return stored_kblocks(kind, data, shape)
    layout, by_row = LAYOUTS[kind], data.reshape(shape[0], -1)
    head, low = layout.head_bytes, 4 if layout.num_bits == 5 else 0
    planes = [Plane(head + low, 16, 16, 4)] if layout.num_bits < 8 else [Plane(head, 32, 32, 8)]
    if low:
        planes.append(Plane(head, low, 1, 1, 4))
    rows = PackedRows(by_row, BLOCK, kind.block_bytes, planes, layout.offset)
    minimum = float16_fields(by_row, kind, 2) if layout.has_minimum else None
    return StoredIntegers(scheme, shape, rows, float16_fields(by_row, kind, 0), minimum=minimum)


def unpack_codes(layout: BlockLayout, body: Bytes) -> Codes:
    """int8 [blocks, 32], signed where the type has no minimum, from uint8 [blocks, bytes]."""
    if layout.num_bits == 8:
        return np.ascontiguousarray(body).view(np.int8)
    nibbles = body[:, -16:]
    # In place: fresh memory for each intermediate costs more than the arithmetic.
    halves = np.empty((len(body), 2, 16), np.uint8)
    np.bitwise_and(nibbles, 15, out=halves[:, 0])
    np.right_shift(nibbles, 4, out=halves[:, 1])
    codes = halves.reshape(len(body), BLOCK)
    if layout.num_bits == 5:
        codes |= np.unpackbits(body[:, :4], axis=1, bitorder="little") << 4
    codes -= np.uint8(layout.offset)
    return codes.view(np.int8)


def pack_codes(layout: BlockLayout, codes: Codes) -> Bytes:
    """uint8 [blocks, bytes] from int8 [blocks, 32]: the inverse of `unpack_codes`."""
    if layout.num_bits == 8:
        return codes.view(np.uint8)
    stored = (codes + np.int8(layout.offset)).view(np.uint8)
    nibbles: Bytes = (stored[:, :16] & np.uint8(15)) | (stored[:, 16:] << np.uint8(4))
    if layout.num_bits == 4:
        return nibbles
    high = np.packbits(stored >> 4, axis=1, bitorder="little")
    return np.concatenate([high, nibbles], axis=1)


def pack_blocks(
    kind: GgmlType,
    codes: Codes,
    scale: npt.NDArray[np.float16],
    minimum: npt.NDArray[np.float16] | None = None,
) -> Bytes:
    """uint8 [blocks, block_bytes] from codes [blocks, 32], scale and minimum [blocks]."""
    heads = [_as_bytes(scale)] if minimum is None else [_as_bytes(scale), _as_bytes(minimum)]
    return np.concatenate([*heads, pack_codes(LAYOUTS[kind], codes)], axis=1)


def lossless_type(scheme: Scheme, columns: int) -> tuple[GgmlType, str]:
    """The smallest type that holds a weight of this scheme exactly, and the reason in words.

    Blocks store `code - zero_point`, so an asymmetric scheme needs one bit more than it has. What
    no block can hold becomes F32, which is exact for every scheme with 16-bit scales, and for
    float32 ones is the product rounded once, as everywhere else.
    """
    if isinstance(scheme, FloatScheme):
        kind = next(kind for kind, floats in FLOAT_SCHEMES.items() if floats == scheme)
        return kind, "as stored"
    if scheme.ggml_type is not None:
        return TYPE_BY_NAME[scheme.ggml_type], "the same blocks"
    if holds(MXFP4, scheme) and columns % MXFP4.block == 0:
        return MXFP4, "the same codes and scales"
    if holds(NVFP4, scheme) and columns % NVFP4.block == 0:
        return NVFP4, "the same codes and scales, their common factor beside them"
    if isinstance(scheme, CodebookScheme):
        return F32, f"no block holds {scheme}: dequantized"
    if columns % BLOCK:
        return F32, f"rows of {columns} are not whole blocks of {BLOCK}: dequantized, exact"
    if scheme.group_size(columns) % BLOCK and scheme.group_size(columns) < columns:
        size = scheme.group_size(columns)
        return F32, f"groups of {size} do not end where blocks of {BLOCK} do: dequantized, exact"
    reach = scheme.qmax - scheme.qmin
    lowest, highest = (scheme.qmin, scheme.qmax) if scheme.symmetric else (-reach, reach)
    for kind in (Q4_0, Q5_0, Q8_0):
        half = 1 << (LAYOUTS[kind].num_bits - 1)
        if -half <= lowest and highest < half:
            return kind, _lossless_reason(scheme, columns)
    return F32, f"{scheme} spans -{reach}..{reach}, more than Q8_0 holds: dequantized, exact"


def encode(name: str, kind: GgmlType, tensor: QuantizedTensor) -> Bytes:
    """uint8 [rows, bytes]: the same numbers as blocks of `kind`, exactly.

    Raises UnsupportedModelError naming the tensor where a scale does not fit float16 exactly, or
    where columns are ordered so that a block would need two scales.
    """
    rows, columns = tensor.shape
    if tensor.blocks is not None and tensor.blocks.type_name == kind.name:
        return tensor.blocks.data
    if holds(kind, tensor.scheme) and columns % kind.block == 0:
        return encode_fp4(name, kind, tensor)
    if kind in LAYOUTS and LAYOUTS[kind].has_minimum and isinstance(tensor.scheme, IntScheme):
        tensor = _with_minimum(tensor, tensor.scheme)
    plain = kind in LAYOUTS and LAYOUTS[kind].has_minimum == (tensor.minimum is not None)
    codebook = tensor.scheme.codebook if isinstance(tensor.scheme, CodebookScheme) else None
    plain &= codebook == ("iq4_nl" if kind == IQ4_NL else None)
    if not plain or columns % BLOCK:
        raise UnsupportedModelError(f"tensor '{name}' ({tensor.scheme}) is not made of {kind}")
    group = _block_groups(name, tensor)
    codes = _net_codes(name, kind, tensor).reshape(rows, -1, BLOCK)
    used: npt.NDArray[np.bool_] = np.any(codes, axis=2) | isinstance(tensor.scheme, CodebookScheme)
    scales = np.broadcast_to(tensor.scale, (rows, tensor.scale.shape[1]))
    scale = _exact_float16(name, "scale", scales[:, group], used)
    minimum = tensor.minimum
    if minimum is not None:
        everywhere = np.ones_like(used)
        minimum = _exact_float16(name, "minimum", minimum[:, group], everywhere).reshape(-1)
    packed = pack_blocks(kind, codes.reshape(-1, BLOCK), scale.reshape(-1), minimum)
    return packed.reshape(rows, -1)


def _with_minimum(tensor: QuantizedTensor, scheme: IntScheme) -> QuantizedTensor:
    """The same numbers with codes from 0 and, in float32, what these are added to."""
    if tensor.minimum is not None:
        return tensor
    zero_point = np.float32(0) if tensor.zero_point is None else tensor.zero_point
    scale = tensor.effective_scale()
    least = scale * (np.float32(scheme.qmin) - zero_point)
    codes = (tensor.codes.astype(np.int16) - np.int16(scheme.qmin)).astype(np.uint8)
    return replace(tensor, codes=codes.view(np.int8), scale=scale, zero_point=None, minimum=least)


def _lossless_reason(scheme: IntScheme, columns: int) -> str:
    repeated = isinstance(scheme.granularity, PerChannel) or scheme.group_size(columns) > BLOCK
    parts = ["same integers" if scheme.symmetric else "code minus zero point"]
    if repeated:
        parts.append(f"scale repeated for each block of {BLOCK}")
    return "lossless: " + ", ".join(parts)


def _block_groups(name: str, tensor: QuantizedTensor) -> npt.NDArray[np.int32]:
    """int32 [blocks]: the group of every block of a row."""
    groups = tensor.column_groups().reshape(-1, BLOCK)
    first = groups[:, 0]
    if (groups != first[:, None]).any():
        raise UnsupportedModelError(
            f"tensor '{name}' mixes groups inside a block of {BLOCK} columns (activation order "
            "with a saved column order), which GGUF cannot hold; quantize with static groups"
        )
    return first


def _net_codes(name: str, kind: GgmlType, tensor: QuantizedTensor) -> Codes:
    """int8 [rows, columns]: codes minus zero points, checked to fit `kind`."""
    layout = LAYOUTS[kind]
    net: npt.NDArray[np.int16] | Codes = tensor.codes
    if tensor.zero_point is not None:
        zero_point = tensor.zero_point.astype(np.int16)[:, tensor.column_groups()]
        net = tensor.codes.astype(np.int16) - zero_point
    lowest, highest = -layout.offset, (1 << layout.num_bits) - 1 - layout.offset
    if layout.num_bits == 8:
        lowest, highest = -128, 127
    if net.size and (net.min() < lowest or net.max() > highest):
        reach = f"{net.min()}..{net.max()}"
        raise UnsupportedModelError(f"tensor '{name}' has codes {reach}, which {kind} cannot hold")
    return np.ascontiguousarray(net, dtype=np.int8)


def _exact_float16(
    name: str, what: str, values: FloatArray, used: npt.NDArray[np.bool_]
) -> npt.NDArray[np.float16]:
    """float16 with the same values; where a block is all zeros its scale may be rounded."""
    wide = values.astype(np.float32)
    with np.errstate(over="ignore", under="ignore"):
        narrow = wide.astype(np.float16)
    inexact = ((narrow.astype(np.float32) != wide) & used) | ~np.isfinite(wide)
    if inexact.any():
        example = wide[inexact][0]
        raise UnsupportedModelError(
            f"tensor '{name}' has {int(inexact.sum())} blocks whose {what} does not fit float16 "
            f"exactly, such as {example:.9g}; build it as type f32, or quantize it with float16 "
            f"scales"
        )
    return np.where(np.isfinite(narrow), narrow, np.float16(0))


def _float16_column(blocks: Bytes, at: int) -> npt.NDArray[np.float16]:
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2")[:, 0]


def _as_bytes(values: npt.NDArray[np.float16]) -> Bytes:
    return np.ascontiguousarray(values, dtype="<f2").reshape(-1, 1).view(np.uint8)
