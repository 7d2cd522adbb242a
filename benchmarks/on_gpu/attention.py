"""Attention of one token of each sequence over a long context, as a fraction of the bandwidth."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.on_gpu.clock import DEVICE, Work, seconds_each
from benchmarks.on_gpu.limits import Limits
from benchmarks.on_gpu.sizes import SIZES
from benchmarks.on_gpu.table import Cell, Row
from runtime.executors.cuda.arrays import splits_for
from runtime.kernels.triton.attention import AttentionWork, attend
from runtime.kernels.triton.cache import CacheNumber, LayerCache, make_cache

CONTEXT = SIZES.long_context
HEADS, KV_HEADS, HEAD_DIM = SIZES.heads
PAGE = 32
PAGES = CONTEXT // PAGE
CACHES: tuple[CacheNumber, ...] = ("bfloat16", "int8", "e4m3")


def attention_cells(limits: Limits) -> Iterator[Cell]:
    """Each kind of cache, under several sequences and under one."""
    for number in CACHES:
        if number == "e4m3" and limits.e4m3 is None:
            continue
        for sequences in SIZES.attending:
            name = f"attention of {sequences} tokens over {CONTEXT}, {number} cache"
            yield name, partial(_decode, name, limits, number, sequences)


def _decode(name: str, limits: Limits, number: CacheNumber, sequences: int) -> list[Row]:
    # One sequence's keys and values fit into a cache of the chip: each time takes another one's.
    times = SIZES.cold if sequences == 1 else 1
    cache = _filled(number, 1 + times * sequences * PAGES)
    order = torch.randperm(times * sequences * PAGES, device=DEVICE).to(torch.int32) + 1
    tables = order.view(times, sequences, PAGES)
    q = torch.randn(sequences, HEADS, HEAD_DIM, device=DEVICE, dtype=torch.bfloat16)
    works: list[Work] = [
        partial(attend, q, cache, _work(table), HEAD_DIM**-0.5) for table in tables
    ]
    seconds = seconds_each(works)
    found = attend(q, cache, _work(tables[0]), HEAD_DIM**-0.5)[0].float()
    exact = _exact(q[0].float(), cache, tables[0, 0])
    off = float((found - exact).abs().max() / exact.abs().max())
    moved = cache.nbytes * sequences * PAGES / len(cache.keys)
    wanted = 0.75 if sequences > 1 else None
    return [Row(name, 1e6 * seconds, "us", moved / limits.bandwidth / seconds, wanted, off)]


def _work(table: Tensor) -> AttentionWork:
    """One token of each sequence, at the end of its context."""
    sequences = len(table)
    every = torch.arange(sequences + 1, dtype=torch.int32, device=DEVICE)
    return AttentionWork(
        torch.full((sequences,), CONTEXT - 1, dtype=torch.int32, device=DEVICE),
        every,
        table.contiguous(),
        every[:-1].clone(),
        torch.zeros(sequences, dtype=torch.int32, device=DEVICE),
        tokens_per_block=1,
        splits=splits_for(sequences, KV_HEADS),
    )


def _filled(number: CacheNumber, pages: int) -> LayerCache:
    """Random keys and values of about one in size."""
    cache = make_cache(number, (pages, KV_HEADS, PAGE, HEAD_DIM), torch.device(DEVICE))
    for pool in (cache.keys, cache.values):
        for page in torch.split(pool, 1024):
            noise = torch.randn(page.shape, device=DEVICE)
            page.copy_((noise * 32 if number == "int8" else noise).to(page.dtype))
    if number == "int8" and cache.key_scale is not None and cache.value_scale is not None:
        cache.key_scale.fill_(1 / 32)
        cache.value_scale.fill_(1 / 32)
    return cache


def _exact(q: Tensor, cache: LayerCache, table: Tensor) -> Tensor:
    """float32 [heads, head_dim] of the last token of one sequence."""

    def gathered(pool: Tensor, scale: Tensor | None) -> Tensor:
        numbers: Tensor = pool[table.long()].float()
        if scale is not None:
            numbers = numbers * (scale if scale.numel() == 1 else scale[table.long()][..., None])
        return numbers.transpose(0, 1).reshape(KV_HEADS, CONTEXT, HEAD_DIM)

    keys = gathered(cache.keys, cache.key_scale)
    values = gathered(cache.values, cache.value_scale)
    scores = q.view(KV_HEADS, -1, HEAD_DIM) @ keys.transpose(1, 2) * HEAD_DIM**-0.5
    found: Tensor = (scores.softmax(-1) @ values).view(HEADS, HEAD_DIM)
    return found
