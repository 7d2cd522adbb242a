"""ggml's blocks of 256 with nested scales: Q2_K to Q6_K and IQ4_XS, decoded and encoded to the bit.

A block holds groups of 16 or 32 elements. A group's scale is a small integer times the block's
float16 `d`; the types with minimums (Q2_K, Q4_K, Q5_K) have the like for them:

    w = d * sub_scale * q - m * sub_minimum

All numbers are little endian. Source: ggml-common.h (block_q2_K and following) and
dequantize_row_* of ggml-quants.c in github.com/ggml-org/llama.cpp.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quant.format.gguf_types import IQ4_XS, Q2_K, Q3_K, Q4_K, Q5_K, Q6_K, GgmlType
from quant.format.scheme import CodebookScheme, IntScheme, PerGroup
from quant.format.stored import PackedRows, Plane, StoredIntegers
from quant.format.tensor import GgmlBlocks, QuantizedTensor

BLOCK = 256

Bytes = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.int8]


@dataclass(frozen=True)
class NestedScales:
    """The factors of a weight's scales, as blocks store them.

    d, m: float16 [out, blocks]; sub_scales: int8 [out, groups]; sub_minimums: uint8 [out, groups].
    m and sub_minimums are None for types without minimums.
    """

    d: npt.NDArray[np.float16]
    sub_scales: npt.NDArray[np.int8]
    m: npt.NDArray[np.float16] | None = None
    sub_minimums: npt.NDArray[np.uint8] | None = None

    def scale(self) -> npt.NDArray[np.float32]:
        """float32 [out, groups], exact: 11 bits times at most 8."""
        return _products(self.d, self.sub_scales)

    def minimum(self) -> npt.NDArray[np.float32] | None:
        """float32 [out, groups], exact: what is added to code * scale."""
        if self.m is None or self.sub_minimums is None:
            return None
        return -_products(self.m, self.sub_minimums)


@dataclass(frozen=True)
class _Plane:
    """Some bits of every code: `bits` of them, to be shifted left by `shift`, in the bytes `field`.

    Each run of `lane` bytes holds 8 / bits runs of `lane` elements, the first in the lowest bits.
    """

    field: str
    lane: int
    bits: int
    shift: int

    @property
    def form(self) -> tuple[int, int, int]:
        """lane, bits, shift."""
        return self.lane, self.bits, self.shift


@dataclass(frozen=True)
class KLayout:
    """What a block of one type holds.

    offset is subtracted from stored codes to sign them. fields: name and bytes, in order.
    lowest, highest: the range of sub-scales.
    """

    scheme: IntScheme | CodebookScheme
    group: int
    offset: int
    fields: tuple[tuple[str, int], ...]
    planes: tuple[_Plane, ...]
    lowest: int
    highest: int

    @property
    def has_minimum(self) -> bool:
        return any(name == "m" for name, _ in self.fields)


def _int(num_bits: int, group: int, name: str, symmetric: bool) -> IntScheme:
    return IntScheme(num_bits, symmetric, PerGroup(group), ggml_type=name)


LAYOUTS: Mapping[GgmlType, KLayout] = {
    Q2_K: KLayout(
        _int(2, 16, "Q2_K", False),
        *(16, 0),
        (("scales", 16), ("low", 64), ("d", 2), ("m", 2)),
        (_Plane("low", 32, 2, 0),),
        *(0, 15),
    ),
    Q3_K: KLayout(
        _int(3, 16, "Q3_K", True),
        *(16, 4),
        (("high", 32), ("low", 64), ("scales", 12), ("d", 2)),
        (_Plane("low", 32, 2, 0), _Plane("high", 32, 1, 2)),
        *(-32, 31),
    ),
    Q4_K: KLayout(
        _int(4, 32, "Q4_K", False),
        *(32, 0),
        (("d", 2), ("m", 2), ("scales", 12), ("low", 128)),
        (_Plane("low", 32, 4, 0),),
        *(0, 63),
    ),
    Q5_K: KLayout(
        _int(5, 32, "Q5_K", False),
        *(32, 0),
        (("d", 2), ("m", 2), ("scales", 12), ("high", 32), ("low", 128)),
        (_Plane("low", 32, 4, 0), _Plane("high", 32, 1, 4)),
        *(0, 63),
    ),
    Q6_K: KLayout(
        _int(6, 16, "Q6_K", True),
        *(16, 32),
        (("low", 128), ("high", 64), ("scales", 16), ("d", 2)),
        (_Plane("low", 64, 4, 0), _Plane("high", 32, 2, 4)),
        *(-128, 127),
    ),
    IQ4_XS: KLayout(
        CodebookScheme("iq4_nl", PerGroup(32), ggml_type="IQ4_XS"),
        *(32, 0),
        (("d", 2), ("scales", 6), ("low", 128)),
        (_Plane("low", 16, 4, 0),),
        *(-32, 31),
    ),
}


def decode_kblocks(kind: GgmlType, data: Bytes, shape: tuple[int, int]) -> QuantizedTensor:
    """A weight of `shape` [out, in] from its bytes, uint8 of any shape; `data` is copied."""
    layout, rows = LAYOUTS[kind], shape[0]
    blocks = data.reshape(-1, kind.block_bytes)
    stored = np.zeros((len(blocks), BLOCK), np.uint8)
    for plane in layout.planes:
        bits = _unpack(_field(layout, blocks, plane.field), plane.lane, plane.bits)
        stored |= bits << np.uint8(plane.shift)
    codes = stored.view(np.int8) - np.int8(layout.offset)
    scales = _read_scales(kind, blocks, rows)
    return QuantizedTensor(
        layout.scheme,
        codes.reshape(shape),
        scales.scale(),
        minimum=scales.minimum(),
        blocks=GgmlBlocks(kind.name, data.reshape(rows, -1).copy()),
    )


def stored_kblocks(kind: GgmlType, data: Bytes, shape: tuple[int, int]) -> StoredIntegers:
    """The integers of `decode_kblocks`, still in their bytes."""
    layout, by_row = LAYOUTS[kind], data.reshape(shape[0], -1)
    assert isinstance(layout.scheme, IntScheme), "codebooks are no integers"
    planes = [
        Plane(_place(layout, each.field), dict(layout.fields)[each.field], *each.form)
        for each in layout.planes
    ]
    nested = nested_scales(kind, by_row)
    minimums = None if nested.sub_minimums is None else nested.sub_minimums.view(np.int8)
    return StoredIntegers(
        layout.scheme,
        shape,
        PackedRows(by_row, BLOCK, kind.block_bytes, planes, layout.offset),
        nested.d,
        minimum=None if nested.m is None else -nested.m,
        sub_scale=nested.sub_scales,
        sub_minimum=minimums,
    )


def float16_fields(by_row: Bytes, kind: GgmlType, start: int) -> npt.NDArray[np.float16]:
    """float16 [out, blocks]: what every block has at byte `start`, a view of uint8 [out, bytes]."""
    rows, size = by_row.shape
    shape, strides = (rows, size // kind.block_bytes), (by_row.strides[0], kind.block_bytes)
    return np.ndarray(shape, np.dtype("<f2"), by_row.data, start, strides)


def encode_kblocks(kind: GgmlType, codes: Codes, scales: NestedScales) -> Bytes:
    """uint8 [out, bytes per row] of int8 codes [out, in], as QuantizedTensor has them."""
    layout, rows = LAYOUTS[kind], len(codes)
    stored = (codes + np.int8(layout.offset)).view(np.uint8).reshape(-1, BLOCK)
    parts = _write_scales(kind, scales)
    for plane in layout.planes:
        bits = (stored >> np.uint8(plane.shift)) & np.uint8((1 << plane.bits) - 1)
        parts[plane.field] = _pack(bits, plane.lane, plane.bits)
    blocks = np.concatenate([parts[name] for name, _ in layout.fields], axis=1)
    return blocks.reshape(rows, -1)


def quantized_tensor(kind: GgmlType, codes: Codes, scales: NestedScales) -> QuantizedTensor:
    """The canonical form of codes [out, in] with their nested scales, blocks included."""
    blocks = GgmlBlocks(kind.name, encode_kblocks(kind, codes, scales))
    scheme = LAYOUTS[kind].scheme
    return QuantizedTensor(scheme, codes, scales.scale(), minimum=scales.minimum(), blocks=blocks)


def nested_scales(kind: GgmlType, blocks: Bytes) -> NestedScales:
    """The factors of the scales in uint8 [out, bytes per row]."""
    return _read_scales(kind, blocks.reshape(-1, kind.block_bytes), len(blocks))


def _read_scales(kind: GgmlType, blocks: Bytes, rows: int) -> NestedScales:
    layout = LAYOUTS[kind]
    packed = _field(layout, blocks, "scales")
    minimums = m = None
    if layout.has_minimum:
        m = _float16(_field(layout, blocks, "m")).reshape(rows, -1)
    if kind == Q2_K:
        scales, minimums = packed & np.uint8(15), packed >> np.uint8(4)
    elif kind == Q3_K:
        low, high = _unpack(packed[:, :8], 8, 4), _unpack(packed[:, 8:], 4, 2)
        scales = (low | high << np.uint8(4)) - np.uint8(32)
    elif kind == Q6_K:
        scales = packed
    elif kind == IQ4_XS:
        low, high = _unpack(packed[:, 2:], 1, 4), _unpack(packed[:, :2], 1, 2)
        scales = (low | high << np.uint8(4)) - np.uint8(32)
    else:
        scales, minimums = _unpack_six_bit_pairs(packed)
    d = _float16(_field(layout, blocks, "d")).reshape(rows, -1)
    sub_scales = np.ascontiguousarray(scales).view(np.int8).reshape(rows, -1)
    return NestedScales(d, sub_scales, m, None if minimums is None else minimums.reshape(rows, -1))


def _write_scales(kind: GgmlType, scales: NestedScales) -> dict[str, Bytes]:
    """The fields of the blocks that hold scales: d, m where there is one, and the packed ones."""
    groups = BLOCK // LAYOUTS[kind].group
    parts = {"d": _as_bytes(scales.d)}
    sub = scales.sub_scales.view(np.uint8).reshape(-1, groups)
    minimums = sub
    if scales.m is not None and scales.sub_minimums is not None:
        parts["m"] = _as_bytes(scales.m)
        minimums = scales.sub_minimums.reshape(-1, groups)
    if kind == Q2_K:
        parts["scales"] = sub | minimums << np.uint8(4)
    elif kind == Q6_K:
        parts["scales"] = sub
    elif kind in (Q3_K, IQ4_XS):
        biased = sub + np.uint8(32)
        low, high = biased & np.uint8(15), biased >> np.uint8(4)
        if kind == Q3_K:
            halves = [_pack(low, 8, 4), _pack(high, 4, 2)]
        else:
            halves = [_pack(high, 1, 2), _pack(low, 1, 4)]
        parts["scales"] = np.concatenate(halves, axis=1)
    else:
        parts["scales"] = _pack_six_bit_pairs(sub, minimums)
    return parts


def _unpack_six_bit_pairs(packed: Bytes) -> tuple[Bytes, Bytes]:
    """8 scales and 8 minimums of 6 bits from 12 bytes. The first four of each have a byte, whose
    top bits are those of the last four; the rest of these shares the last four bytes."""
    first, second, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    low, high = np.uint8(15), np.uint8(48)
    scales = [first & np.uint8(63), (rest & low) | (first >> np.uint8(2)) & high]
    minimums = [second & np.uint8(63), rest >> np.uint8(4) | (second >> np.uint8(2)) & high]
    return np.concatenate(scales, axis=1), np.concatenate(minimums, axis=1)


def _pack_six_bit_pairs(scales: Bytes, minimums: Bytes) -> Bytes:
    first = scales[:, :4] | (scales[:, 4:] >> np.uint8(4)) << np.uint8(6)
    second = minimums[:, :4] | (minimums[:, 4:] >> np.uint8(4)) << np.uint8(6)
    rest = (scales[:, 4:] & np.uint8(15)) | (minimums[:, 4:] & np.uint8(15)) << np.uint8(4)
    return np.concatenate([first, second, rest], axis=1)


def _unpack(data: Bytes, lane: int, bits: int) -> Bytes:
    """uint8 [blocks, elements] from uint8 [blocks, bytes]; see _Plane."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    runs = data.reshape(len(data), -1, 1, lane) >> shifts & np.uint8((1 << bits) - 1)
    return runs.reshape(len(data), -1)


def _pack(values: Bytes, lane: int, bits: int) -> Bytes:
    """The inverse of `_unpack`."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    runs = values.reshape(len(values), -1, 8 // bits, lane) << shifts
    packed: Bytes = np.bitwise_or.reduce(runs, axis=2)
    return packed.reshape(len(values), -1)


def _field(layout: KLayout, blocks: Bytes, name: str) -> Bytes:
    at = _place(layout, name)
    return blocks[:, at : at + dict(layout.fields)[name]]


def _place(layout: KLayout, name: str) -> int:
    """The byte of a block where a field begins."""
    names = [field for field, _ in layout.fields]
    return sum(size for _, size in layout.fields[: names.index(name)])


def _float16(data: Bytes) -> npt.NDArray[np.float16]:
    return np.ascontiguousarray(data).view("<f2")


def _as_bytes(values: npt.NDArray[np.float16]) -> Bytes:
    return np.ascontiguousarray(values, dtype="<f2").reshape(-1, 1).view(np.uint8)


def _products(
    factors: npt.NDArray[np.float16], integers: npt.NDArray[np.int8] | npt.NDArray[np.uint8]
) -> npt.NDArray[np.float32]:
    rows, blocks = factors.shape
    wide = integers.reshape(rows, blocks, -1).astype(np.float32)
    with np.errstate(invalid="ignore"):
        return (factors.astype(np.float32)[:, :, None] * wide).reshape(rows, -1)
