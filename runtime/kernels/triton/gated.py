"""Gated activation: activation(gate) * up, of one product whose columns are gate, then up."""

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels.triton.numbers import SMALLEST_SCALE, store_rounded, tanh
from runtime.kernels.triton.rounded import Numbers, RoundedRows, unwritten_rows

Activation = Literal["silu", "gelu_tanh"]
_BLOCK = 1024


def gated(gate_up: Tensor, activation: Activation) -> Tensor:
    """gate_up [rows, 2 * size] -> [rows, size], float32 inside."""
    rows, size = len(gate_up), gate_up.shape[1] // 2
    out = torch.empty((rows, size), dtype=gate_up.dtype, device=gate_up.device)
    if rows:
        _gated_kernel[(rows, triton.cdiv(size, _BLOCK))](
            gate_up, out, size, GELU=activation == "gelu_tanh", BLOCK=_BLOCK
        )
    return out


def gated_rounded(gate_up: Tensor, activation: Activation, numbers: Numbers) -> RoundedRows:
    """The same, each row rounded with a scale of its own (see `norm.round_rows`)."""
    rows, size = len(gate_up), gate_up.shape[1] // 2
    out = unwritten_rows(rows, size, numbers, gate_up.device)
    if rows:
        _gated_rounded_kernel[(rows,)](
            gate_up,
            out.codes,
            out.scale,
            size,
            GELU=activation == "gelu_tanh",
            INTEGERS=numbers == "int8",
            SMALLEST=SMALLEST_SCALE,
            BLOCK=triton.next_power_of_2(size),
            num_warps=8,
        )
    return out


@triton.jit
def _activated(gate, up, GELU: tl.constexpr):
    if GELU:
        inner = 0.7978845608028654 * (gate + 0.044715 * gate * gate * gate)
        result = 0.5 * gate * (1.0 + tanh(inner)) * up
    else:
        result = gate * tl.sigmoid(gate) * up
    return result


@triton.jit
def _gated_kernel(gate_up, out, size, GELU: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < size
    gate = tl.load(gate_up + row * 2 * size + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * size + size + columns, mask=inside, other=0.0).to(tl.float32)
    result = _activated(gate, up, GELU)
    tl.store(out + row * size + columns, result.to(out.dtype.element_ty), mask=inside)


@triton.jit
def _gated_rounded_kernel(
    gate_up, codes, scale, size,
    GELU: tl.constexpr, INTEGERS: tl.constexpr, SMALLEST: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < size
    gate = tl.load(gate_up + row * 2 * size + columns, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * 2 * size + size + columns, mask=inside, other=0.0).to(tl.float32)
    result = tl.where(inside, _activated(gate, up, GELU), 0.0)
    largest = tl.max(tl.abs(result), axis=0)
    place = codes + row * size + columns
    store_rounded(result, largest, place, scale + row, inside, INTEGERS, SMALLEST)
