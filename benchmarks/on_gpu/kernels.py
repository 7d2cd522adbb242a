"""Single kernels, as fractions of what the chip copies or multiplies."""

from collections.abc import Iterator
from functools import partial
from typing import Literal

import torch

from benchmarks.on_gpu.limits import Limits, seconds_of
from benchmarks.on_gpu.table import Row
from runtime.kernels.triton.attention import AttentionWork, attend
from runtime.kernels.triton.cache import CacheNumber, make_cache
from runtime.kernels.triton.norm import round_rows
from runtime.kernels.triton.rounded import RoundedWeight, rounded_matmul
from runtime.kernels.triton.tuning import PROGRAMS_PER_PROCESSOR, num_processors
from runtime.kernels.triton.weight_only import pack_integer, weight_only_matmul

Numbers = Literal["int8", "e4m3"]
IN, OUT = 4096, 14336
GROUP = 128
CONTEXT, HEADS, KV_HEADS, HEAD_DIM, PAGE = 8192, 32, 8, 128, 32


def kernel_rows(limits: Limits) -> list[Row]:
    """Products at 8B shape, and attention at 8k context."""
    return [*_packed(limits), *_rounded(limits), *_attention(limits)]


def _packed(limits: Limits) -> Iterator[Row]:
    codes = torch.randint(-8, 8, (OUT, IN), dtype=torch.int8, device="cuda")
    scale = torch.rand(OUT, IN // GROUP, device="cuda").to(torch.bfloat16) / 100
    weight = pack_integer(codes, scale, None, 4, GROUP)
    numbers = (codes.float().view(OUT, -1, GROUP) * scale.float()[..., None]).view(OUT, IN)
    dense = numbers.to(torch.bfloat16)
    for rows in (1, 4, 16, 32, 512, 2048):
        x = torch.randn(rows, IN, device="cuda", dtype=torch.bfloat16)
        seconds = seconds_of(partial(weight_only_matmul, x, weight))
        moved = weight.nbytes + 2 * rows * (IN + OUT)
        limit = max(moved / limits.bandwidth, 2.0 * rows * IN * OUT / limits.bfloat16)
        exact = x.double() @ numbers.double().T
        found = weight_only_matmul(x, weight).double()
        difference = float((found - exact).abs().max() / exact.abs().max())
        wanted = 0.8 if rows == 1 else None
        name = f"int4 x bfloat16, {rows} rows of {IN} -> {OUT}"
        yield Row(name, 1e6 * seconds, "us", limit / seconds, wanted, difference)
        plain = seconds_of(partial(torch.matmul, x, dense.T))
        yield Row(f"torch bfloat16, {rows} rows", 1e6 * plain, "us")


def _rounded(limits: Limits) -> Iterator[Row]:
    rates: tuple[tuple[Numbers, float | None], ...] = (
        ("int8", limits.int8),
        ("e4m3", limits.e4m3),
    )
    for numbers, rate in rates:
        if rate is None:
            continue
        dense = torch.randn(OUT, IN, device="cuda")
        rounded = round_rows(dense, numbers)
        weight = RoundedWeight(rounded.codes, rounded.scale)
        for rows in (1, 32, 2048):
            x = round_rows(torch.randn(rows, IN, device="cuda"), numbers)
            seconds = seconds_of(partial(rounded_matmul, x, weight, torch.bfloat16))
            moved = weight.nbytes + rows * (IN + 2 * OUT)
            limit = max(moved / limits.bandwidth, 2.0 * rows * IN * OUT / rate)
            left = x.codes.double() * x.scale.double()[:, None]
            exact = left @ (weight.codes.double() * weight.scale.double()[:, None]).T
            found = rounded_matmul(x, weight, torch.float32).double()
            difference = float((found - exact).abs().max() / exact.abs().max())
            name = f"{numbers} x {numbers}, {rows} rows of {IN} -> {OUT}"
            yield Row(name, 1e6 * seconds, "us", limit / seconds, None, difference)


def _attention(limits: Limits) -> Iterator[Row]:
    caches: tuple[CacheNumber, ...] = ("bfloat16", "int8", "e4m3")
    for number in caches:
        for sequences in (1, 16):
            yield _decode_attention(limits, number, sequences)


def _decode_attention(limits: Limits, number: CacheNumber, sequences: int) -> Row:
    pages = CONTEXT // PAGE
    shape = (1 + sequences * pages, KV_HEADS, PAGE, HEAD_DIM)
    cache = make_cache(number, shape, torch.device("cuda"))
    order = torch.randperm(sequences * pages, device="cuda").to(torch.int32) + 1
    every = torch.arange(sequences + 1, dtype=torch.int32, device="cuda")
    wanted = PROGRAMS_PER_PROCESSOR * num_processors()
    work = AttentionWork(
        torch.full((sequences,), CONTEXT - 1, dtype=torch.int32, device="cuda"),
        every,
        order.view(sequences, pages),
        every[:-1].clone(),
        torch.zeros(sequences, dtype=torch.int32, device="cuda"),
        tokens_per_block=1,
        splits=max(1, min(64, wanted // (sequences * KV_HEADS))),
    )
    q = torch.randn(sequences, HEADS, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
    seconds = seconds_of(partial(attend, q, cache, work, HEAD_DIM**-0.5))
    moved = cache.nbytes * sequences * pages / shape[0]
    name = f"attention of {sequences} tokens over {CONTEXT}, {number} cache"
    fraction = moved / limits.bandwidth / seconds
    return Row(name, 1e6 * seconds, "us", fraction, 0.75 if sequences > 1 else None)
