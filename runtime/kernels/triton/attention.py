"""Causal attention over pages, for single tokens and chunks of prompts alike.

A program has some tokens of one sequence and the query heads that share one key-value head, so that
a page's keys and values are loaded once for all of them; with splits, several programs share the
context and a second kernel merges what they found (Flash-Decoding). The softmax is online (Milakov
and Gimelshein 2018).
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels.triton.cache import LayerCache
from runtime.kernels.triton.numbers import tanh
from runtime.kernels.triton.tuning import attention_config

LEAST_ROWS = 16
"""Rows of the smallest matrix product that Triton makes."""


@dataclass(frozen=True, eq=False)
class AttentionWork:
    """The step, and how its tokens are cut into programs.

    positions: int32 [tokens]. query_starts: int32 [sequences + 1]. page_table: int32 [sequences,
    pages]. block_sequence, block_start: int32 [blocks]: the sequence of each block of tokens, and
    its first token, counted from the sequence's first of this step; blocks may be empty.
    tokens_per_block: tokens of a block at most. splits: programs that share a block's context.
    """

    positions: Tensor
    query_starts: Tensor
    page_table: Tensor
    block_sequence: Tensor
    block_start: Tensor
    tokens_per_block: int
    splits: int


def attend(
    q: Tensor,
    cache: LayerCache,
    work: AttentionWork,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """q [tokens, heads, head_dim] over the cache -> the same shape; float32 inside. Keys and values
    of the step's own tokens are in the cache already. window, softcap: as in `Attend`."""
    tokens, heads, head_dim = q.shape
    kv_heads = cache.keys.shape[1]
    shared = heads // kv_heads
    out = torch.empty_like(q)
    if tokens == 0:
        return out
    rows = max(LEAST_ROWS, triton.next_power_of_2(work.tokens_per_block * shared))
    blocks, splits = len(work.block_sequence), work.splits
    parts, peaks = out, out
    if splits > 1:
        parts = torch.empty((splits, tokens, heads, head_dim), dtype=torch.float32, device=q.device)
        peaks = torch.empty((splits, 2, tokens, heads), dtype=torch.float32, device=q.device)
    scales = cache.keys if cache.key_scale is None else cache.key_scale
    block = triton.next_power_of_2(head_dim)
    config = attention_config(rows, cache.page_size, block, cache.keys.itemsize)
    _attend_kernel[(blocks, kv_heads, splits)](
        q,
        cache.keys,
        cache.values,
        scales,
        scales if cache.value_scale is None else cache.value_scale,
        work.positions,
        work.query_starts,
        work.page_table,
        work.block_sequence,
        work.block_start,
        parts,
        peaks,
        tokens,
        work.page_table.stride(0),
        scale,
        0.0 if softcap is None else softcap,
        splits,
        KV_HEADS=kv_heads,
        SHARED=shared,
        TOKENS=work.tokens_per_block,
        PAGE=cache.page_size,
        KEYS=config.keys,
        SIZE=head_dim,
        WINDOW=window or 0,
        CAPPED=softcap is not None,
        KIND=cache.kind,
        SPLIT=splits > 1,
        ROWS=rows,
        BLOCK=block,
        num_warps=config.warps,
        num_stages=config.stages,
    )
    if splits > 1:
        _merge_kernel[(tokens, heads)](
            parts, peaks, out, tokens, splits, HEADS=heads, SIZE=head_dim, BLOCK=block
        )
    return out


@triton.jit(do_not_specialize=["num_tokens", "table_stride", "splits"])
def _attend_kernel(
    q, keys, values, key_scale, value_scale, positions, query_starts, page_table,
    block_sequence, block_start, out, peaks, num_tokens, table_stride, scale, softcap, splits,
    KV_HEADS: tl.constexpr, SHARED: tl.constexpr, TOKENS: tl.constexpr, PAGE: tl.constexpr,
    KEYS: tl.constexpr, SIZE: tl.constexpr, WINDOW: tl.constexpr, CAPPED: tl.constexpr,
    KIND: tl.constexpr, SPLIT: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    kv_head, split = tl.program_id(1), tl.program_id(2)
    sequence = tl.load(block_sequence + tl.program_id(0))
    first = tl.load(query_starts + sequence) + tl.load(block_start + tl.program_id(0))
    end = tl.load(query_starts + sequence + 1)
    row = tl.arange(0, ROWS)
    token = first + row // SHARED
    taken = (row < TOKENS * SHARED) & (token < end)
    heads: tl.constexpr = KV_HEADS * SHARED
    head = kv_head * SHARED + row % SHARED
    columns, offsets = tl.arange(0, BLOCK), tl.arange(0, KEYS)
    TILES: tl.constexpr = PAGE // KEYS
    in_head = columns < SIZE
    places = (token.to(tl.int64) * heads + head)[:, None] * SIZE + columns[None, :]
    mask = taken[:, None] & in_head[None, :]
    queries = tl.load(q + places, mask=mask, other=0.0)
    position = tl.load(positions + token, mask=taken, other=-1)
    seen = tl.max(position, axis=0) + 1
    tiles = tl.cdiv(seen, KEYS)
    begin = 0
    if WINDOW > 0:
        oldest = tl.min(tl.where(taken, position, 2147483647), axis=0) - WINDOW + 1
        begin = tl.maximum(oldest, 0) // KEYS
    per_split = tl.cdiv(tl.maximum(tiles - begin, 0), splits)
    begin += split * per_split
    peak = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    acc = tl.zeros((ROWS, BLOCK), tl.float32)
    for number in range(begin, tl.minimum(begin + per_split, tiles)):
        place = page_table + sequence.to(tl.int64) * table_stride + number // TILES
        page = tl.load(place).to(tl.int64)
        held = (page * KV_HEADS + kv_head) * PAGE + number % TILES * KEYS + offsets
        tile = held[:, None] * SIZE + columns[None, :]
        # What lies behind the last token was left there by somebody else.
        key_position = number * KEYS + offsets
        written = key_position < seen
        k = _loaded(keys, key_scale, tile, held, in_head, written, queries.dtype, KIND)
        scores = tl.dot(queries, tl.trans(k), input_precision="ieee") * scale
        if CAPPED:
            scores = softcap * tanh(scores / softcap)
        visible = key_position[None, :] <= position[:, None]
        if WINDOW > 0:
            visible = visible & (key_position[None, :] > position[:, None] - WINDOW)
        scores = tl.where(visible, scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, axis=1))
        # A row that has seen no key yet has no peak; any finite number stands in for it.
        finite = tl.where(higher == float("-inf"), 0.0, higher)
        weights = tl.exp(scores - finite[:, None])
        kept = tl.exp(peak - finite)
        v = _loaded(values, value_scale, tile, held, in_head, written, queries.dtype, KIND)
        acc = acc * kept[:, None]
        acc = tl.dot(weights.to(queries.dtype), v, acc, input_precision="ieee")
        total = total * kept + tl.sum(weights, axis=1)
        peak = higher
    if not SPLIT:
        # Rows that belong to no token have seen no key.
        result = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        tl.store(out + places, result.to(out.dtype.element_ty), mask=mask)
    else:
        part = split.to(tl.int64) * num_tokens * heads
        tl.store(out + part * SIZE + places, acc, mask=mask)
        row_place = token.to(tl.int64) * heads + head
        tl.store(peaks + 2 * part + row_place, peak, mask=taken)
        tl.store(peaks + 2 * part + num_tokens * heads + row_place, total, mask=taken)


@triton.jit
def _loaded(pool, scale, tile, held, in_head, written, dtype: tl.constexpr, KIND: tl.constexpr):
    """[KEYS, BLOCK] of keys or values, as numbers of the queries' dtype."""
    numbers = tl.load(pool + tile, mask=in_head[None, :] & written[:, None], other=0.0)
    if KIND == 1:
        factor = tl.load(scale + held, mask=written, other=0.0)
        numbers = numbers.to(tl.float32) * factor[:, None]
    elif KIND > 1:
        numbers = numbers.to(tl.float32) * tl.load(scale)
    return numbers.to(dtype)


@triton.jit(do_not_specialize=["num_tokens", "splits"])
def _merge_kernel(
    parts, peaks, out, num_tokens, splits,
    HEADS: tl.constexpr, SIZE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    token, head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    columns = tl.arange(0, BLOCK)
    inside = columns < SIZE
    row = token * HEADS + head
    all_rows = num_tokens.to(tl.int64) * HEADS
    peak = -float("inf")
    for split in range(splits):
        peak = tl.maximum(peak, tl.load(peaks + 2 * split * all_rows + row))
    total = 0.0
    acc = tl.zeros((BLOCK,), tl.float32)
    for split in range(splits):
        factor = tl.exp(tl.load(peaks + 2 * split * all_rows + row) - peak)
        total += tl.load(peaks + (2 * split + 1) * all_rows + row) * factor
        place = (split * all_rows + row) * SIZE + columns
        acc += tl.load(parts + place, mask=inside, other=0.0) * factor
    tl.store(out + row * SIZE + columns, (acc / total).to(out.dtype.element_ty), mask=inside)
