"""Products of rounded inputs, int8 or e4m3, with weights of the same numbers; one scale for a whole
row of either side, or one for each group of its columns."""

from dataclasses import dataclass, replace
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels.triton.experts import Sent
from runtime.kernels.triton.tuning import RoundedConfig, rounded_config

Numbers = Literal["int8", "e4m3"]


@dataclass(frozen=True, eq=False)
class RoundedRows:
    """x [rows, in]: codes, int8 or float8_e4m3fn, times scale, float32 [rows] or [rows, groups]."""

    codes: Tensor
    scale: Tensor


def unwritten_rows(rows: int, size: int, numbers: Numbers, device: torch.device) -> RoundedRows:
    """Memory for so many rounded rows."""
    held = torch.int8 if numbers == "int8" else torch.float8_e4m3fn
    codes = torch.empty((rows, size), dtype=held, device=device)
    return RoundedRows(codes, torch.empty(rows, dtype=torch.float32, device=device))


@dataclass(frozen=True, eq=False)
class RoundedWeight:
    """codes: int8 or float8_e4m3fn [out, in], as stored. scale: float32 [out], or [out, groups]."""

    codes: Tensor
    scale: Tensor

    @property
    def nbytes(self) -> int:
        return self.codes.nbytes + self.scale.nbytes


def rounded_matmul(
    x: RoundedRows,
    weight: RoundedWeight,
    dtype: torch.dtype,
    bias: Tensor | None = None,
    config: RoundedConfig | None = None,
    group: int = 0,
    sent: Sent | None = None,
) -> Tensor:
    """x @ weight.T + bias as `dtype` [rows, out]. int8 products are summed exactly in int32, those
    of e4m3 in float32; both scales multiply the sum. group: columns that share a scale on both
    sides, 32, 64 or 128, each of which is summed for itself; 0 is the whole row. sent: then
    `weight` has the experts' matrices below each other, and [tokens * chosen, out] comes out."""
    (rows, in_features), out_features = x.codes.shape, len(weight.codes)
    if sent is not None:
        rows, out_features = sent.pairs, out_features // sent.experts
    out = torch.empty((rows, out_features), dtype=dtype, device=x.codes.device)
    if rows == 0:
        return out
    if sent is not None:
        config = replace(rounded_config(sent.rows), rows=sent.rows)
    config = config or rounded_config(rows)
    blocks = triton.cdiv(rows, config.rows) if sent is None else sent.blocks
    grid = (triton.cdiv(out_features, config.columns), blocks)
    _rounded_kernel[grid](
        x.codes,
        x.scale,
        weight.codes,
        weight.scale,
        weight.scale if bias is None else bias,
        x.scale if sent is None else sent.pair,
        x.scale if sent is None else sent.expert,
        out,
        rows,
        out_features,
        in_features,
        triton.cdiv(in_features, group) if group else 1,
        HAS_BIAS=bias is not None,
        INTEGERS=x.codes.dtype == torch.int8,
        GROUPED=group > 0,
        CHOSEN=0 if sent is None else sent.per_row,
        ROWS=config.rows,
        COLUMNS=config.columns,
        DEPTH=group or config.depth,
        num_warps=config.warps,
        num_stages=config.stages,
    )
    return out


@triton.jit(do_not_specialize=["num_rows"])
def _rounded_kernel(
    x, x_scale, weight, weight_scale, bias, pairs, experts, out,
    num_rows, num_columns, in_features, num_groups,
    HAS_BIAS: tl.constexpr, INTEGERS: tl.constexpr, GROUPED: tl.constexpr, CHOSEN: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    rows = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    in_columns, in_rows = columns < num_columns, rows < num_rows
    source, weight_columns, end = rows, columns.to(tl.int64), in_features
    if CHOSEN > 0:
        expert = tl.load(experts + tl.program_id(1)).to(tl.int64)
        rows = tl.load(pairs + rows)
        in_rows, source = rows >= 0, rows // CHOSEN
        weight_columns += expert * num_columns
        # A block that no pair came to has no sum to make.
        end = tl.where(tl.max(rows, axis=0) < 0, 0, in_features)
    x_rows = x + source[:, None].to(tl.int64) * in_features
    weight_rows = weight + weight_columns[None, :] * in_features
    number: tl.constexpr = tl.int32 if INTEGERS else tl.float32
    EXACT_AFTER: tl.constexpr = DEPTH if DEPTH < 128 else 128
    acc = tl.zeros((ROWS, COLUMNS), dtype=tl.float32 if GROUPED else number)
    for first in range(0, end, DEPTH):
        k = first + tl.arange(0, DEPTH)
        inside = k < in_features
        a = tl.load(x_rows + k[None, :], mask=in_rows[:, None] & inside[None, :], other=0.0)
        b = tl.load(weight_rows + k[:, None], mask=inside[:, None] & in_columns[None, :], other=0.0)
        if GROUPED:
            group = first // DEPTH
            product = tl.dot(a, b, out_dtype=number).to(tl.float32)
            by_row = tl.load(x_scale + source * num_groups + group, mask=in_rows, other=0.0)
            by_column = tl.load(
                weight_scale + weight_columns * num_groups + group, mask=in_columns, other=0.0
            )
            acc += product * by_row[:, None] * by_column[None, :]
        elif INTEGERS:
            acc = tl.dot(a, b, acc, out_dtype=number)
        else:
            # Hopper keeps 14 bits of a sum of these, unless it is told to move it on.
            acc = tl.dot(a, b, acc, out_dtype=number, max_num_imprecise_acc=EXACT_AFTER)
    result = acc.to(tl.float32)
    if not GROUPED:
        row_scale = tl.load(x_scale + source, mask=in_rows, other=0.0)
        column_scale = tl.load(weight_scale + weight_columns, mask=in_columns, other=0.0)
        result = result * row_scale[:, None] * column_scale[None, :]
    if HAS_BIAS:
        result += tl.load(bias + columns, mask=in_columns, other=0.0).to(tl.float32)[None, :]
    places = rows[:, None].to(tl.int64) * num_columns + columns[None, :]
    mask = in_rows[:, None] & in_columns[None, :]
    tl.store(out + places, result.to(out.dtype.element_ty), mask=mask)
