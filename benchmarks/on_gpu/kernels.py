"""Single kernels, as fractions of what the chip copies or multiplies."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.on_gpu.limits import Limits, seconds_of
from benchmarks.on_gpu.table import Cell, Row
from runtime.kernels.triton.attention import AttentionWork, attend
from runtime.kernels.triton.cache import CacheNumber, make_cache
from runtime.kernels.triton.norm import round_rows
from runtime.kernels.triton.rounded import Numbers, RoundedWeight, rounded_matmul
from runtime.kernels.triton.tuning import PROGRAMS_PER_PROCESSOR, num_processors
from runtime.kernels.triton.weight_only import PackedInteger, pack_integer, weight_only_matmul

IN, OUT = 4096, 14336
GROUP = 128
CONTEXT, HEADS, KV_HEADS, HEAD_DIM, PAGE = 8192, 32, 8, 128, 32


def packed_cells(limits: Limits) -> Iterator[Cell]:
    """4-bit weights under bfloat16 inputs, at 8B shape, beside torch's product of bfloat16."""
    codes = torch.randint(-8, 8, (OUT, IN), dtype=torch.int8, device="cuda")
    scale = torch.rand(OUT, IN // GROUP, device="cuda").to(torch.bfloat16) / 100
    weight = pack_integer(codes, scale, None, 4, GROUP)
    numbers = (codes.float().view(OUT, -1, GROUP) * scale.float()[..., None]).view(OUT, IN)
    for rows in (1, 2048, 16, 32, 4, 512):
        name = f"int4 x bfloat16, {rows} rows of {IN} -> {OUT}"
        yield name, partial(_packed, name, rows, weight, numbers, limits)
        plain = f"torch bfloat16, {rows} rows of {IN} -> {OUT}"
        yield plain, partial(_plain, plain, rows, numbers)


def _packed(
    name: str, rows: int, weight: PackedInteger, numbers: Tensor, limits: Limits
) -> list[Row]:
    x = torch.randn(rows, IN, device="cuda", dtype=torch.bfloat16)
    seconds = seconds_of(partial(weight_only_matmul, x, weight))
    moved = weight.nbytes + 2 * rows * (IN + OUT)
    limit = max(moved / limits.bandwidth, 2.0 * rows * IN * OUT / limits.bfloat16)
    exact = x.double() @ numbers.double().T
    found = weight_only_matmul(x, weight).double()
    difference = float((found - exact).abs().max() / exact.abs().max())
    wanted = 0.8 if rows == 1 else None
    return [Row(name, 1e6 * seconds, "us", limit / seconds, wanted, difference)]


def _plain(name: str, rows: int, numbers: Tensor) -> list[Row]:
    x = torch.randn(rows, IN, device="cuda", dtype=torch.bfloat16)
    dense = numbers.to(torch.bfloat16)
    return [Row(name, 1e6 * seconds_of(partial(torch.matmul, x, dense.T)), "us")]


def rounded_cells(limits: Limits) -> Iterator[Cell]:
    """8-bit numbers on both sides."""
    rates: tuple[tuple[Numbers, float | None], ...] = (
        ("e4m3", limits.e4m3),
        ("int8", limits.int8),
    )
    for numbers, rate in rates:
        if rate is None:
            continue
        rounded = round_rows(torch.randn(OUT, IN, device="cuda"), numbers)
        weight = RoundedWeight(rounded.codes, rounded.scale)
        for rows in (1, 2048, 32):
            name = f"{numbers} x {numbers}, {rows} rows of {IN} -> {OUT}"
            yield name, partial(_rounded, name, rows, weight, numbers, rate, limits.bandwidth)


def _rounded(
    name: str, rows: int, weight: RoundedWeight, numbers: Numbers, rate: float, bandwidth: float
) -> list[Row]:
    x = round_rows(torch.randn(rows, IN, device="cuda"), numbers)
    seconds = seconds_of(partial(rounded_matmul, x, weight, torch.bfloat16))
    moved = weight.codes.nbytes + rows * (IN + 2 * OUT)
    limit = max(moved / bandwidth, 2.0 * rows * IN * OUT / rate)
    left = x.codes.double() * x.scale.double()[:, None]
    exact = left @ (weight.codes.double() * weight.scale.double()[:, None]).T
    found = rounded_matmul(x, weight, torch.float32).double()
    difference = float((found - exact).abs().max() / exact.abs().max())
    return [Row(name, 1e6 * seconds, "us", limit / seconds, None, difference)]


def attention_cells(limits: Limits) -> Iterator[Cell]:
    """One token of each sequence over 8k context."""
    caches: tuple[CacheNumber, ...] = ("bfloat16", "int8", "e4m3")
    for number in caches:
        for sequences in (16, 1):
            name = f"attention of {sequences} tokens over {CONTEXT}, {number} cache"
            yield name, partial(_decode_attention, name, limits, number, sequences)


def _decode_attention(name: str, limits: Limits, number: CacheNumber, sequences: int) -> list[Row]:
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
    fraction = moved / limits.bandwidth / seconds
    return [Row(name, 1e6 * seconds, "us", fraction, 0.75 if sequences > 1 else None)]
