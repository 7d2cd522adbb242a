"""Single kernels, as fractions of what the chip copies or multiplies, beside torch's own."""

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from benchmarks.on_gpu.clock import DEVICE, Work, seconds_each, seconds_of
from benchmarks.on_gpu.limits import Limits
from benchmarks.on_gpu.sizes import SIZES
from benchmarks.on_gpu.table import Cell, Row
from runtime.kernels.triton.norm import round_rows
from runtime.kernels.triton.rounded import Numbers, RoundedRows, RoundedWeight, rounded_matmul
from runtime.kernels.triton.sampling import Choices, choose
from runtime.kernels.triton.weight_only import PackedInteger, pack_integer, weight_only_matmul

IN, OUT = SIZES.columns_in, SIZES.columns_out
GROUP = 128
FEW_ROWS = 64
"""Up to here a product waits for its weight, of which each time takes another copy."""
SHAPE = f"of {IN} -> {OUT}"


def packed_cells(limits: Limits) -> Iterator[Cell]:
    """4-bit weights under bfloat16 inputs, at 8B shape, beside torch's products of bfloat16 and of
    its own 4-bit weights."""
    codes = torch.randint(-8, 8, (OUT, IN), dtype=torch.int8, device=DEVICE)
    scale = (torch.rand(OUT, IN // GROUP, device=DEVICE) / 100).to(torch.bfloat16)
    numbers = (codes.float().view(OUT, -1, GROUP) * scale.float()[..., None]).view(OUT, IN)
    weights = [pack_integer(codes, scale, None, 4, GROUP) for _ in range(SIZES.cold)]
    for rows in SIZES.rows:
        name = f"int4 x bfloat16, {rows} rows {SHAPE}"
        yield name, partial(_packed, name, rows, weights, numbers, limits)
        plain = f"torch bfloat16, {rows} rows {SHAPE}"
        yield plain, partial(_plain, plain, rows, numbers)
        if DEVICE == "cuda" and rows <= FEW_ROWS:
            other = f"torch int4, {rows} rows {SHAPE}"
            yield other, partial(_torch_int4, other, rows)


def _packed(
    name: str, rows: int, weights: list[PackedInteger], numbers: Tensor, limits: Limits
) -> list[Row]:
    x = _random(rows)
    seconds = _seconds(rows, [partial(weight_only_matmul, x, weight) for weight in weights])
    moved = weights[0].nbytes + 2 * rows * (IN + OUT)
    limit = max(moved / limits.bandwidth, 2.0 * rows * IN * OUT / limits.bfloat16)
    found = weight_only_matmul(x, weights[0])
    off = _difference(found, x.double() @ numbers.double().T)
    wanted = 0.8 if rows == 1 else None
    return [Row(name, 1e6 * seconds, "us", limit / seconds, wanted, off)]


def _plain(name: str, rows: int, numbers: Tensor) -> list[Row]:
    x = _random(rows)
    weights = [numbers.to(torch.bfloat16) for _ in range(SIZES.cold)]
    works: list[Work] = [partial(torch.matmul, x, weight.T) for weight in weights]
    return [Row(name, 1e6 * _seconds(rows, works), "us")]


def _torch_int4(name: str, rows: int) -> list[Row]:
    x = _random(rows)
    scales = torch.ones(IN // GROUP, OUT, 2, device=DEVICE, dtype=torch.bfloat16)
    works: list[Work] = []
    for _ in range(SIZES.cold):
        codes = torch.randint(0, 256, (OUT, IN // 2), dtype=torch.uint8, device=DEVICE)
        packed = torch.ops.aten._convert_weight_to_int4pack(codes, 8)
        works.append(partial(torch.ops.aten._weight_int4pack_mm, x, packed, GROUP, scales))
    return [Row(name, 1e6 * _seconds(rows, works), "us")]


def rounded_cells(limits: Limits) -> Iterator[Cell]:
    """8-bit numbers on both sides, and torch's own product of e4m3."""
    rates: tuple[tuple[Numbers, float | None], ...] = (
        ("e4m3", limits.e4m3),
        ("int8", limits.int8),
    )
    for numbers, rate in rates:
        if rate is None:
            continue
        rounded = round_rows(torch.randn(OUT, IN, device=DEVICE), numbers)
        weights = [RoundedWeight(rounded.codes.clone(), rounded.scale) for _ in range(SIZES.cold)]
        for rows in SIZES.rows:
            if rows in (4, 16):
                continue
            name = f"{numbers} x {numbers}, {rows} rows {SHAPE}"
            yield name, partial(_rounded, name, rows, weights, numbers, rate, limits.bandwidth)
            if numbers == "e4m3" and rows > FEW_ROWS:
                other = f"torch e4m3, {rows} rows {SHAPE}"
                yield other, partial(_torch_e4m3, other, rows, weights[0], rate)


def _rounded(
    name: str,
    rows: int,
    weights: list[RoundedWeight],
    numbers: Numbers,
    rate: float,
    bandwidth: float,
) -> list[Row]:
    x, weight = round_rows(_random(rows).float(), numbers), weights[0]
    works: list[Work] = [partial(rounded_matmul, x, each, torch.bfloat16) for each in weights]
    seconds = _seconds(rows, works)
    moved = weight.codes.nbytes + rows * (IN + 2 * OUT)
    limit = max(moved / bandwidth, 2.0 * rows * IN * OUT / rate)
    off = _difference(rounded_matmul(x, weight, torch.float32), _exact(x, weight))
    return [Row(name, 1e6 * seconds, "us", limit / seconds, None, off)]


def _exact(x: RoundedRows, weight: RoundedWeight) -> Tensor:
    left = x.codes.double() * x.scale.double()[:, None]
    return left @ (weight.codes.double() * weight.scale.double()[:, None]).T


def _torch_e4m3(name: str, rows: int, weight: RoundedWeight, rate: float) -> list[Row]:
    x = round_rows(_random(rows).float(), "e4m3")

    def multiply() -> Tensor:
        return torch._scaled_mm(
            x.codes, weight.codes.T, scale_a=x.scale[:, None], scale_b=weight.scale[None, :],
            out_dtype=torch.bfloat16,
        )  # fmt: skip

    seconds = seconds_of(multiply)
    limit = 2.0 * rows * IN * OUT / rate
    return [
        Row(
            name,
            1e6 * seconds,
            "us",
            limit / seconds,
            None,
            _difference(multiply(), _exact(x, weight)),
        )
    ]


def sampling_cells(limits: Limits) -> Iterator[Cell]:
    """Tokens chosen from the logits of every stream of the 8B shape."""
    vocab, rows = SIZES.shapes["8B"]["vocab_size"], SIZES.streams[1]
    for how, heat in (("greedy", 0.0), ("top-k 50, top-p 0.9", 0.8)):
        name = f"{rows} tokens chosen from {vocab} logits, {how}"
        yield name, partial(_chosen, name, rows, vocab, heat, limits)


def _chosen(name: str, rows: int, vocab: int, heat: float, limits: Limits) -> list[Row]:
    logits = 4 * torch.randn(rows, vocab, device=DEVICE)

    def of(value: float) -> Tensor:
        return torch.full((rows,), value, device=DEVICE)

    top_k = torch.full((rows,), 50, dtype=torch.int32, device=DEVICE)
    choices = Choices(of(heat), top_k, of(0.9), of(0.0), of(0.5))
    seconds = seconds_of(partial(choose, logits, choices))
    best = logits.argmax(1)
    wrong = None if heat else float((choose(logits, choices) != best).double().mean())
    fraction = logits.nbytes / limits.bandwidth / seconds
    return [Row(name, 1e6 * seconds, "us", fraction, None, wrong)]


def _seconds(rows: int, works: Sequence[Work]) -> float:
    return seconds_each(works) if rows <= FEW_ROWS else seconds_of(works[0])


def _random(rows: int) -> Tensor:
    return torch.randn(rows, IN, device=DEVICE, dtype=torch.bfloat16)


def _difference(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact.double()).abs().max() / exact.double().abs().max())
