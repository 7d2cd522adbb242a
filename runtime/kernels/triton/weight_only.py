"""Products with 4- or 8-bit integers, which are unpacked in registers.

Inputs are floats, or rounded to int8 or e4m3 with a scale per row: 16 bits hold either exactly.

4-bit layout: byte r of group g holds columns g * group + r (low nibble) and g * group + group / 2 +
r (high), so that both halves of a group are whole tiles and no register is shuffled. Codes lie
[in, out], output columns next to each other, which is how a program's threads read them.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels.triton.rounded import RoundedRows
from runtime.kernels.triton.tuning import MatmulConfig, weight_only_config

_NUMBERS = {
    torch.float32: tl.float32,
    torch.float16: tl.float16,
    torch.bfloat16: tl.bfloat16,
}
ZERO_OF_SIGNED = 8
"""Signed 4-bit codes are stored with this added."""


@dataclass(frozen=True, eq=False)
class PackedInteger:
    """A weight [out, in] as the kernel reads it.

    codes: uint8 [groups * group_size / 2, out] for 4 bits, int8 [groups * group_size, out] for 8;
    columns beyond `in_features` are zero. scale: [groups, out], as stored. zero_point: int8
    [groups, out], as it is subtracted from the signed codes; None for symmetric weights.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor | None
    num_bits: int
    group_size: int
    in_features: int
    out_features: int

    @property
    def nbytes(self) -> int:
        zeros = 0 if self.zero_point is None else self.zero_point.nbytes
        return self.codes.nbytes + self.scale.nbytes + zeros


def pack_integer(
    codes: Tensor, scale: Tensor, zero_point: Tensor | None, num_bits: int, group_size: int
) -> PackedInteger:
    """Signed codes int8 [out, in] with scale and zero_point [out, groups] in the kernel's layout.

    num_bits up to 4 are packed in nibbles, others stay bytes. group_size: at least 32 and even.
    """
    rows, columns = codes.shape
    groups = scale.shape[1]
    padded = torch.nn.functional.pad(codes, (0, groups * group_size - columns))
    by_group = padded.view(rows, groups, group_size).permute(1, 2, 0)
    if num_bits <= 4:
        nibbles = (by_group + ZERO_OF_SIGNED).to(torch.uint8)
        low, high = nibbles[:, : group_size // 2], nibbles[:, group_size // 2 :]
        held = (low | (high << 4)).reshape(-1, rows)
    else:
        held = by_group.reshape(-1, rows)
    return PackedInteger(
        held.contiguous(),
        scale.T.contiguous(),
        None if zero_point is None else zero_point.T.contiguous(),
        4 if num_bits <= 4 else 8,
        group_size,
        columns,
        rows,
    )


def weight_only_matmul(
    x: Tensor | RoundedRows,
    weight: PackedInteger,
    bias: Tensor | None = None,
    config: MatmulConfig | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """x [rows, in] @ weight.T + bias, summed in float32, as `dtype`: x's own by default, which
    rounded rows have none of.

    A group's integer products are summed before its scale multiplies, so that nothing is rounded
    but the result, unless `config.scale_first`, which rounds code times scale to `dtype`.
    """
    codes, row_scale = (x, None) if isinstance(x, Tensor) else (x.codes, x.scale)
    dtype = dtype or codes.dtype
    rows = len(codes)
    out = torch.empty((rows, weight.out_features), dtype=dtype, device=codes.device)
    if rows == 0:
        return out
    config = config or weight_only_config(rows, weight.in_features, weight.out_features)
    splits = min(config.splits, len(weight.scale))
    parts = out
    if splits > 1:
        parts = torch.empty(
            (splits, rows, weight.out_features), dtype=torch.float32, device=codes.device
        )
    grid = (
        triton.cdiv(weight.out_features, config.columns),
        triton.cdiv(rows, config.rows),
        splits,
    )
    _weight_only_kernel[grid](
        codes,
        weight.scale if row_scale is None else row_scale,
        weight.codes,
        weight.scale,
        weight.scale if weight.zero_point is None else weight.zero_point,
        parts if bias is None or splits > 1 else bias,
        parts,
        rows,
        weight.out_features,
        weight.in_features,
        len(weight.scale),
        codes.stride(0),
        GROUP=weight.group_size,
        FOUR_BITS=weight.num_bits == 4,
        HAS_ZERO=weight.zero_point is not None,
        HAS_BIAS=bias is not None and splits == 1,
        SPLITS=splits,
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


@triton.jit
def _weight_only_kernel(
    x, row_scale, codes, scale, zero_point, bias, out,
    num_rows, num_columns, in_features, num_groups, x_stride,
    GROUP: tl.constexpr, FOUR_BITS: tl.constexpr, HAS_ZERO: tl.constexpr, HAS_BIAS: tl.constexpr,
    SPLITS: tl.constexpr, ROUNDED: tl.constexpr, NUMBER: tl.constexpr, SCALE_FIRST: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    split = tl.program_id(2)
    HALF: tl.constexpr = GROUP // 2
    inside = tl.arange(0, HALF)
    in_columns = columns < num_columns
    in_rows = rows[:, None] < num_rows
    x_rows = x + rows[:, None].to(tl.int64) * x_stride
    per_split = tl.cdiv(num_groups, SPLITS)
    first = split * per_split
    acc = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    for group in range(first, tl.minimum(first + per_split, num_groups)):
        k_low = group * GROUP + inside
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
            held = group * HALF + inside
            packed = tl.load(
                codes + held[:, None].to(tl.int64) * num_columns + columns[None, :],
                mask=in_columns[None, :], other=0,
            )  # fmt: skip
            low = (packed & 0xF).to(tl.int16) - 8
            high = (packed >> 4).to(tl.int16) - 8
        else:
            low = tl.load(
                codes + k_low[:, None].to(tl.int64) * num_columns + columns[None, :],
                mask=in_columns[None, :], other=0,
            ).to(tl.int16)  # fmt: skip
            high = tl.load(
                codes + k_high[:, None].to(tl.int64) * num_columns + columns[None, :],
                mask=in_columns[None, :], other=0,
            ).to(tl.int16)  # fmt: skip
        if HAS_ZERO:
            zeros = tl.load(zero_point + group * num_columns + columns, mask=in_columns, other=0)
            low -= zeros.to(tl.int16)[None, :]
            high -= zeros.to(tl.int16)[None, :]
        scales = tl.load(scale + group * num_columns + columns, mask=in_columns, other=0.0).to(
            tl.float32
        )
        if SCALE_FIRST:
            b_low = (low.to(tl.float32) * scales[None, :]).to(NUMBER)
            b_high = (high.to(tl.float32) * scales[None, :]).to(NUMBER)
            acc = tl.dot(a_low, b_low, acc, input_precision="ieee")
            acc = tl.dot(a_high, b_high, acc, input_precision="ieee")
        else:
            product = tl.dot(a_low, low.to(NUMBER), input_precision="ieee")
            product = tl.dot(a_high, high.to(NUMBER), product, input_precision="ieee")
            acc += product * scales[None, :]
    if ROUNDED:
        acc = acc * tl.load(row_scale + rows, mask=rows < num_rows, other=0.0)[:, None]
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
        SPLITS=splits,
        HAS_BIAS=bias is not None,
        BLOCK=block,
    )


@triton.jit
def _sum_parts_kernel(
    parts, bias, out, num_rows, num_columns,
    SPLITS: tl.constexpr, HAS_BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    row = tl.program_id(1)
    inside = columns < num_columns
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for split in tl.static_range(SPLITS):
        place = (split * num_rows + row).to(tl.int64) * num_columns
        total += tl.load(parts + place + columns, mask=inside, other=0.0)
    if HAS_BIAS:
        total += tl.load(bias + columns, mask=inside, other=0.0).to(tl.float32)
    place = row.to(tl.int64) * num_columns
    tl.store(out + place + columns, total.to(out.dtype.element_ty), mask=inside)
