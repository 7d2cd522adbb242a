"""Root-mean-square norm of rows, with the residual sum before it and the rounding behind it."""

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels.triton.numbers import SMALLEST_SCALE, store_rounded
from runtime.kernels.triton.rounded import Numbers, RoundedRows, unwritten_rows

Rounding = Numbers | Literal["none"]


def rms_norm(x: Tensor, weight: Tensor, eps: float, residual: Tensor | None = None) -> Tensor:
    """x [rows, size] (plus residual, which becomes the sum) normed; float32 inside.

    weight: float32 [size], offset included.
    """
    out = torch.empty_like(x)
    _launch(x, weight, eps, residual, out, None, "none")
    return out


def rms_norm_rounded(
    x: Tensor,
    weight: Tensor,
    eps: float,
    numbers: Numbers,
    residual: Tensor | None = None,
) -> RoundedRows:
    """The same, each row rounded with a scale of its own: never written in 16 bits between."""
    out = unwritten_rows(len(x), x.shape[1], numbers, x.device)
    _launch(x, weight, eps, residual, out.codes, out.scale, numbers)
    return out


def round_rows(x: Tensor, numbers: Numbers, largest: Tensor | None = None) -> RoundedRows:
    """x [rows, size] rounded to nearest, ties to even, with one scale per row: the largest
    magnitude over 127.5 (int8, clamped to -128 .. 127) or over 448 (e4m3). largest: float32 [rows],
    these magnitudes, where x is only a part of the rows."""
    out = unwritten_rows(len(x), x.shape[1], numbers, x.device)
    _launch(x, None, 0.0, None, out.codes, out.scale, numbers, largest)
    return out


def round_groups(x: Tensor, numbers: Numbers, group: int) -> RoundedRows:
    """x [rows, size] rounded with one scale for each `group` columns -> scale [rows, groups]."""
    rows, size = x.shape
    groups = -(-size // group)
    wide = torch.nn.functional.pad(x, (0, groups * group - size)).reshape(rows * groups, group)
    found = round_rows(wide, numbers)
    codes = found.codes.view(rows, groups * group)[:, :size].contiguous()
    return RoundedRows(codes, found.scale.view(rows, groups))


def _launch(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    residual: Tensor | None,
    out: Tensor,
    scale: Tensor | None,
    rounding: Rounding,
    largest: Tensor | None = None,
) -> None:
    rows, size = x.shape
    if rows == 0:
        return
    _norm_kernel[(rows,)](
        x,
        x if residual is None else residual,
        x if weight is None else weight,
        out,
        x if scale is None else scale,
        x if largest is None else largest,
        size,
        x.stride(0),
        eps,
        HAS_RESIDUAL=residual is not None,
        NORM=weight is not None,
        TOLD=largest is not None,
        ROUNDING=("none", "int8", "e4m3").index(rounding),
        SMALLEST=SMALLEST_SCALE,
        BLOCK=triton.next_power_of_2(size),
        num_warps=4 if size <= 4096 else 8,
    )


@triton.jit
def _norm_kernel(
    x, residual, weight, out, scale, row_largest, size, x_stride, eps,
    HAS_RESIDUAL: tl.constexpr, NORM: tl.constexpr, TOLD: tl.constexpr, ROUNDING: tl.constexpr,
    SMALLEST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    values = tl.load(x + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    if HAS_RESIDUAL:
        place = residual + row * size + columns
        values += tl.load(place, mask=inside, other=0.0).to(tl.float32)
        tl.store(place, values.to(residual.dtype.element_ty), mask=inside)
    if NORM:
        mean_square = tl.sum(values * values, axis=0) / size
        factor = tl.load(weight + columns, mask=inside, other=0.0).to(tl.float32)
        values = values * (1.0 / tl.sqrt(mean_square + eps)) * factor
    place = out + row * size + columns
    if ROUNDING == 0:
        tl.store(place, values.to(out.dtype.element_ty), mask=inside)
    else:
        largest = tl.load(row_largest + row) if TOLD else tl.max(tl.abs(values), axis=0)
        store_rounded(values, largest, place, scale + row, inside, ROUNDING == 1, SMALLEST)
