"""Which tokens go to which experts of a mixture, and dense products of experts.

Rows are sorted by expert into blocks of one expert each, as many as there can be at most: nothing
depends on the host knowing how many there are, so that a graph can replay it. A pair is a token and
one of the experts that it is sent to, numbered token * chosen + place.
"""

from dataclasses import dataclass, replace

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels.triton.tuning import expert_rows, experts_config


@dataclass(frozen=True, eq=False)
class Sent:
    """pair: int32 [blocks * rows], the pair of each row of each block, -1 for none. expert: int32
    [blocks]. experts, pairs: how many there are. per_row: how many pairs share one row of the input
    of a product."""

    pair: Tensor
    expert: Tensor
    rows: int
    experts: int
    pairs: int
    per_row: int

    @property
    def blocks(self) -> int:
        return len(self.expert)

    def behind(self) -> "Sent":
        """For the product behind this one, whose input has a row for each pair."""
        return replace(self, per_row=1)


def route(
    logits: Tensor, chosen: int, normalized: bool, rows: int | None = None
) -> tuple[Sent, Tensor]:
    """logits [tokens, experts] -> where the tokens go, and float32 factors [tokens, chosen]: the
    softmax of the largest logits, `normalized` to a sum of 1. rows: of a block."""
    tokens, count = logits.shape
    pairs = tokens * chosen
    rows = rows or expert_rows(pairs, count)
    factors, numbers = logits.to(torch.float32).softmax(-1).topk(chosen)
    if normalized:
        factors = factors / factors.sum(-1, keepdim=True)
    expert = numbers.flatten()
    by_expert, order = expert.sort(stable=True)
    every = torch.arange(count, device=logits.device)
    counts = (expert[:, None] == every[None, :]).sum(0)
    blocks = (counts + rows - 1) // rows
    ends = blocks.cumsum(0)
    first_row = (ends - blocks) * rows - (counts.cumsum(0) - counts)
    places = torch.arange(pairs, device=logits.device) + first_row[by_expert]
    most = min(pairs, count) + pairs // rows
    pair = torch.full((most * rows,), -1, dtype=torch.int32, device=logits.device)
    pair[places] = order.to(torch.int32)
    numbers_of_blocks = torch.arange(most, device=logits.device)
    of_block = torch.searchsorted(ends, numbers_of_blocks, right=True).clamp(max=count - 1)
    return Sent(pair, of_block.to(torch.int32), rows, count, pairs, chosen), factors


def dense_experts(x: Tensor, weight: Tensor, sent: Sent) -> Tensor:
    """x [rows, in] @ weight of its expert.T -> [pairs, out], of x's dtype, summed in float32.

    weight: [experts * out, in].
    """
    out_features, in_features = len(weight) // sent.experts, weight.shape[1]
    out = torch.empty((sent.pairs, out_features), dtype=x.dtype, device=x.device)
    if sent.pairs:
        config = experts_config(sent.rows)
        _dense_experts_kernel[(triton.cdiv(out_features, config.columns), sent.blocks)](
            x,
            weight,
            sent.pair,
            sent.expert,
            out,
            out_features,
            in_features,
            x.stride(0),
            CHOSEN=sent.per_row,
            ROWS=sent.rows,
            COLUMNS=config.columns,
            DEPTH=64,
            num_warps=config.warps,
            num_stages=config.stages,
        )
    return out


@triton.jit
def _dense_experts_kernel(
    x, weight, pairs, experts, out, num_columns, in_features, x_stride,
    CHOSEN: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    columns = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    expert = tl.load(experts + tl.program_id(1)).to(tl.int64)
    pair = tl.load(pairs + tl.program_id(1) * ROWS + tl.arange(0, ROWS))
    in_rows, in_columns = (pair >= 0)[:, None], (columns < num_columns)[None, :]
    x_rows = x + (pair // CHOSEN)[:, None].to(tl.int64) * x_stride
    weight_rows = weight + (expert * num_columns + columns[None, :]) * in_features
    acc = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
    # A block that no pair came to has no sum to make.
    end = tl.where(tl.max(pair, axis=0) < 0, 0, in_features)
    for first in range(0, end, DEPTH):
        k = first + tl.arange(0, DEPTH)
        inside = k < in_features
        a = tl.load(x_rows + k[None, :], mask=in_rows & inside[None, :], other=0.0)
        b = tl.load(weight_rows + k[:, None], mask=inside[:, None] & in_columns, other=0.0)
        acc = tl.dot(a, b, acc, input_precision="ieee")
    places = pair[:, None].to(tl.int64) * num_columns + columns[None, :]
    tl.store(out + places, acc.to(out.dtype.element_ty), mask=in_rows & in_columns)
