"""Products with 4- or 8-bit integers, which are unpacked in registers.

Inputs are floats, or rounded to int8 or e4m3 with a scale per row: 16 bits hold either exactly.

A tile is a group of columns, or two groups of 16. 4-bit layout: byte r of tile t holds columns
t * size + r (low nibble) and t * size + size / 2 + r (high), so that both halves of a tile are
multiplied whole and no register is shuffled. Codes lie [in, out], output columns next to each
other, which is how a program's threads read them.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels.triton.experts import Sent
from runtime.kernels.triton.rounded import RoundedRows
from runtime.kernels.triton.tuning import MatmulConfig, experts_config, weight_only_config

_NUMBERS = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}
ZERO_OF_SIGNED = 8
"""Signed 4-bit codes are stored with this added."""
LEAST_TILE = 32
"""Half of it is the smallest sum of a matrix product that Triton makes."""


@dataclass(frozen=True, eq=False)
class PackedInteger:
    """A weight [out, in] as the kernel reads it.

    codes: uint8 [tiles * tile_size / 2, out] for 4 bits, int8 [tiles * tile_size, out] for 8;
    columns beyond `in_features` are zero. scale: [groups, out], as stored. zero_point: int8
    [groups, out], as it is subtracted from the signed codes; None for symmetric weights. minimum:
    [groups, out], added to code times scale; codes are unsigned then. halves: a tile is two groups.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    minimum: Tensor | None
    num_bits: int
    tile_size: int
    halves: bool
    in_features: int
    out_features: int

    @property
    def nbytes(self) -> int:
        parts = (self.codes, self.scale, self.zero_point, self.minimum)
        return sum(part.nbytes for part in parts if part is not None)


def pack_integer(
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor | None,
    num_bits: int,
    group_size: int,
    minimum: Tensor | None = None,
) -> PackedInteger:
    """Codes int8 [out, in] with scale, zero_point and minimum [out, groups] in the kernel's layout.

    num_bits up to 4 are packed in nibbles, others stay bytes. group_size: 16, or at least 32 and a
    power of two.
    """
    rows, columns = codes.shape
    halves = group_size < LEAST_TILE
    size = max(group_size, LEAST_TILE)
    tiles = -(-columns // size)
    padded = torch.nn.functional.pad(codes, (0, tiles * size - columns))
    by_tile = padded.view(rows, tiles, size).permute(1, 2, 0)
    if num_bits <= 4:
        offset = ZERO_OF_SIGNED if minimum is None else 0
        nibbles = (by_tile + offset).to(torch.uint8)
        low, high = nibbles[:, : size // 2], nibbles[:, size // 2 :]
        held = (low | (high << 4)).reshape(-1, rows)
    else:
        held = by_tile.reshape(-1, rows)

    def of_groups(numbers: Tensor | None) -> Tensor | None:
        if numbers is None:
            return None
        missing = tiles * (size // group_size) - numbers.shape[1]
        return torch.nn.functional.pad(numbers, (0, missing)).T.contiguous()

    scales = of_groups(scale)
    assert scales is not None
    return PackedInteger(
        held.contiguous(),
        scales,
        of_groups(zero_point),
        of_groups(minimum),
        4 if num_bits <= 4 else 8,
        size,
        halves,
        columns,
        rows,
    )


def weight_only_matmul(
    x: Tensor | RoundedRows,
    weight: PackedInteger,
    bias: Tensor | None = None,
    config: MatmulConfig | None = None,
    dtype: torch.dtype | None = None,
    sent: Sent | None = None,
) -> Tensor:
    """x [rows, in] @ weight.T + bias, summed in float32, as `dtype`: x's own by default, which
    rounded rows have none of. sent: then `weight` has the experts' matrices below each other in its
    codes and scales, [tokens * chosen, out] comes out, and there is no bias.

    A group's integer products are summed before its scale multiplies, so that nothing is rounded
    but the result, unless `config.scale_first`, which rounds code times scale to `dtype`.
    """
    codes, row_scale = (x, None) if isinstance(x, Tensor) else (x.codes, x.scale)
    dtype = dtype or codes.dtype
    rows = len(codes) if sent is None else sent.pairs
    out = torch.empty((rows, weight.out_features), dtype=dtype, device=codes.device)
    if rows == 0:
        return out
    if sent is not None:
        config = experts_config(sent.rows)
    config = config or weight_only_config(rows, weight.in_features, weight.out_features)
    tiles = -(-weight.in_features // weight.tile_size)
    splits = min(config.splits, tiles)
    parts = out
    if splits > 1:
        parts = torch.empty(
            (splits, rows, weight.out_features), dtype=torch.float32, device=codes.device
        )
    grid = (
        triton.cdiv(weight.out_features, config.columns),
        triton.cdiv(rows, config.rows) if sent is None else sent.blocks,
        splits,
    )
    _weight_only_kernel[grid](
        codes,
        weight.scale if row_scale is None else row_scale,
        weight.codes,
        weight.scale,
        weight.scale if weight.zero_point is None else weight.zero_point,
        weight.scale if weight.minimum is None else weight.minimum,
        parts if bias is None or splits > 1 else bias,
        weight.scale if sent is None else sent.pair,
        weight.scale if sent is None else sent.expert,
        parts,
        rows,
        weight.out_features,
        weight.in_features,
        tiles,
        -(-tiles // splits),
        codes.stride(0),
        TILE=weight.tile_size,
        HALVES=weight.halves,
        FOUR_BITS=weight.num_bits == 4,
        HAS_ZERO=weight.zero_point is not None,
        HAS_MINIMUM=weight.minimum is not None,
        HAS_BIAS=bias is not None and splits == 1,
        CHOSEN=0 if sent is None else sent.per_row,
        ROUNDED=row_scale is not None,
        NUMBER=_NUMBERS[dtype],
        SCALE_FIRST=config.scale_first,
        ROWS=config.rows,
        COLUMNS=config.columns,
        num_warps=config.warps,
        num_stages=config.stages,
    )
    if splits > 1:
        _sum_parts(parts, bias, out)
    return out


@triton.jit(do_not_specialize=["num_rows", "num_tiles", "per_split"])
def _weight_only_kernel(
    x, row_scale, codes, scale, zero_point, minimum, bias, pairs, experts, out,
    num_rows, num_columns, in_features, num_tiles, per_split, x_stride,
    TILE: tl.constexpr, HALVES: tl.constexpr, FOUR_BITS: tl.constexpr, HAS_ZERO: tl.constexpr,
    HAS_MINIMUM: tl.constexpr, HAS_BIAS: tl.constexpr, CHOSEN: tl.constexpr, ROUNDED: tl.constexpr,
    NUMBER: tl.constexpr, SCALE_FIRST: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    split = tl.program_id(2)
    HALF: tl.constexpr = TILE // 2
    inside = tl.arange(0, HALF)
    in_columns = columns < num_columns
    taken = rows < num_rows
    source, base = rows, 0
    if CHOSEN > 0:
        expert = tl.load(experts + tl.program_id(1))
        rows = tl.load(pairs + rows)
        taken = rows >= 0
        source, base = rows // CHOSEN, expert.to(tl.int64) * num_tiles
    in_rows = taken[:, None]
    x_rows = x + source[:, None].to(tl.int64) * x_stride
    first = split * per_split
    last = tl.minimum(first + per_split, num_tiles)
    if CHOSEN > 0:
        # A block that no pair came to has no sum to make.
        last = tl.where(tl.max(rows, axis=0) < 0, 0, last)
    acc = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for tile in range(first, last):
        k_low = tile * TILE + inside
        k_high = k_low + HALF
        a_low = tl.load(
            x_rows + k_low[None, :], mask=in_rows & (k_low < in_features)[None, :], other=0.0
        )
        a_high = tl.load(
            x_rows + k_high[None, :], mask=in_rows & (k_high < in_features)[None, :], other=0.0
        )
        if ROUNDED:
            a_low = a_low.to(tl.float32).to(NUMBER)
            a_high = a_high.to(tl.float32).to(NUMBER)
        if FOUR_BITS:
            held = (base + tile) * HALF + inside
            packed = tl.load(
                codes + held[:, None].to(tl.int64) * num_columns + columns[None, :],
                mask=in_columns[None, :], other=0,
            )  # fmt: skip
            OFFSET: tl.constexpr = 0 if HAS_MINIMUM else 8
            low = (packed & 0xF).to(tl.int16) - OFFSET
            high = (packed >> 4).to(tl.int16) - OFFSET
        else:
            at = (
                codes + (base * TILE + k_low)[:, None].to(tl.int64) * num_columns + columns[None, :]
            )
            low = tl.load(at, mask=in_columns[None, :], other=0).to(tl.int16)
            at += HALF * num_columns
            high = tl.load(at, mask=in_columns[None, :], other=0).to(tl.int16)
        at_low = (2 * (base + tile) if HALVES else base + tile) * num_columns + columns
        at_high = at_low + num_columns if HALVES else at_low
        if HAS_ZERO:
            low -= tl.load(zero_point + at_low, mask=in_columns, other=0).to(tl.int16)[None, :]
            high -= tl.load(zero_point + at_high, mask=in_columns, other=0).to(tl.int16)[None, :]
        scale_low = tl.load(scale + at_low, mask=in_columns, other=0.0).to(tl.float32)[None, :]
        scale_high = scale_low
        if HALVES:
            scale_high = tl.load(scale + at_high, mask=in_columns, other=0.0)
            scale_high = scale_high.to(tl.float32)[None, :]
        if HAS_MINIMUM:
            least_low = tl.load(minimum + at_low, mask=in_columns, other=0.0)
            least_low = least_low.to(tl.float32)[None, :]
            least_high = least_low
            if HALVES:
                least_high = tl.load(minimum + at_high, mask=in_columns, other=0.0)
                least_high = least_high.to(tl.float32)[None, :]
        if SCALE_FIRST:
            b_low, b_high = low.to(tl.float32) * scale_low, high.to(tl.float32) * scale_high
            if HAS_MINIMUM:
                b_low += least_low
                b_high += least_high
            acc = tl.dot(a_low, b_low.to(NUMBER), acc, input_precision="ieee")
            acc = tl.dot(a_high, b_high.to(NUMBER), acc, input_precision="ieee")
        else:
            product = tl.dot(a_low, low.to(NUMBER), input_precision="ieee")
            if HALVES:
                acc += product * scale_low
                product = tl.dot(a_high, high.to(NUMBER), input_precision="ieee")
            else:
                product = tl.dot(a_high, high.to(NUMBER), product, input_precision="ieee")
            acc += product * scale_high
            if HAS_MINIMUM:
                acc += tl.sum(a_low.to(tl.float32), axis=1)[:, None] * least_low
                acc += tl.sum(a_high.to(tl.float32), axis=1)[:, None] * least_high
    if ROUNDED:
        acc = acc * tl.load(row_scale + source, mask=taken, other=0.0)[:, None]
    if HAS_BIAS:
        acc += tl.load(bias + columns, mask=in_columns, other=0.0).to(tl.float32)[None, :]
    places = (split * num_rows + rows[:, None]).to(tl.int64) * num_columns + columns[None, :]
    tl.store(out + places, acc.to(out.dtype.element_ty), mask=in_rows & in_columns[None, :])


def _sum_parts(parts: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """out = the sum of parts [splits, rows, columns] in order, plus bias."""
    splits, rows, columns = parts.shape
    block = 256
    _sum_parts_kernel[(triton.cdiv(columns, block), rows)](
        parts,
        parts if bias is None else bias,
        out,
        rows,
        columns,
        splits,
        HAS_BIAS=bias is not None,
        BLOCK=block,
    )


@triton.jit(do_not_specialize=["num_rows", "splits"])
def _sum_parts_kernel(
    parts, bias, out, num_rows, num_columns, splits,
    HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(1)
    inside = columns < num_columns
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for split in range(splits):
        place = (split * num_rows + row).to(tl.int64) * num_columns
        total += tl.load(parts + place + columns, mask=inside, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    place = row.to(tl.int64) * num_columns
    tl.store(out + place + columns, total.to(out.dtype.element_ty), mask=inside)
