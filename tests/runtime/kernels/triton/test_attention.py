"""Rotary embedding, the page pool and attention against a float64 loop over tokens and heads."""

from dataclasses import dataclass, replace
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.gpu import COMPILED, DEVICE

# The device is chosen before kernels are defined.
from runtime.kernels.triton.attention import AttentionWork, attend  # isort: skip
from runtime.kernels.triton.cache import (  # isort: skip
    CacheNumber, HeadNorm, LayerCache, RopeTable, make_cache, rotate_and_store,
)  # fmt: skip

PAGE = 16
KV_SCALES = (0.02, 0.01)


@dataclass(frozen=True)
class Case:
    """heads share kv_heads; sequences: (tokens computed before, tokens of the step)."""

    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 12
    rotated: int = 8
    sequences: tuple[tuple[int, int], ...] = ((3, 2), (18, 1), (0, 5))
    normed: bool = False
    window: int | None = None
    softcap: float | None = None
    number: CacheNumber = "float32"
    stored_scales: bool = False
    tokens_per_block: int = 1
    splits: int = 1
    scale: float = 0.3
    page: int = PAGE


class Model:
    """Random queries, keys and values of every token of every sequence, and the exact answer."""

    def __init__(self, case: Case, seed: int) -> None:
        self.case = case
        generator = torch.Generator().manual_seed(seed)
        longest = max(sum(sequence) for sequence in case.sequences)

        def random(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator)

        self.rope = RopeTable(
            random(longest, case.rotated // 2), random(longest, case.rotated // 2)
        )
        weights = torch.rand(2, case.head_dim, generator=generator)
        self.norm = HeadNorm(weights[0], weights[1], 1e-5) if case.normed else None
        totals = [sum(sequence) for sequence in case.sequences]
        self.q = [random(total, case.heads * case.head_dim) for total in totals]
        self.k = [random(total, case.kv_heads * case.head_dim) for total in totals]
        self.v = [random(total, case.kv_heads * case.head_dim) for total in totals]

    def exact(self) -> torch.Tensor:
        """float64 [tokens of the step, heads, head_dim]."""
        case, rows = self.case, []
        shared = case.heads // case.kv_heads
        for number, (before, new) in enumerate(case.sequences):
            q = self._rotated(self.q[number], None if self.norm is None else self.norm.query)
            k = self._rotated(self.k[number], None if self.norm is None else self.norm.key)
            v = self.v[number].double().view(-1, case.kv_heads, case.head_dim)
            for position in range(before, before + new):
                first = 0 if case.window is None else max(0, position + 1 - case.window)
                for head in range(case.heads):
                    keys = k[first : position + 1, head // shared]
                    scores = keys @ q[position, head] * case.scale
                    if case.softcap is not None:
                        scores = case.softcap * torch.tanh(scores / case.softcap)
                    rows.append(scores.softmax(0) @ v[first : position + 1, head // shared])
        return torch.stack(rows).view(-1, case.heads, case.head_dim)

    def _rotated(self, x: torch.Tensor, weight: torch.Tensor | None) -> torch.Tensor:
        x = x.double().view(len(x), -1, self.case.head_dim)
        if weight is not None:
            x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight.double()
        half = self.case.rotated // 2
        a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        cos = self.rope.cos[: len(x), None].double()
        sin = self.rope.sin[: len(x), None].double()
        return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1)


def run(model: Model) -> tuple[torch.Tensor, LayerCache]:
    """What the kernels give for the step, after one step with all that was computed before."""
    case = model.case
    table, pages = [], 1
    for sequence in case.sequences:
        count = -(-sum(sequence) // case.page)
        table.append(list(range(pages, pages + count))[::-1])
        pages += count
    shape = (pages, case.kv_heads, case.page, case.head_dim)
    scales = KV_SCALES if case.stored_scales else None
    cache = make_cache(case.number, shape, DEVICE, scales)
    leave_nothing_behind(cache)
    width = max(len(row) for row in table)
    page_table = torch.tensor([row + [0] * (width - len(row)) for row in table], dtype=torch.int32)
    store(model, cache, page_table, [(0, before) for before, _ in case.sequences])
    spans = [(before, before + new) for before, new in case.sequences]
    q, positions, starts = store(model, cache, page_table, spans)
    blocks = [
        (number, first)
        for number, (_, new) in enumerate(case.sequences)
        for first in range(0, new, case.tokens_per_block)
    ]
    by_block = torch.tensor(blocks, dtype=torch.int32).T.contiguous().to(DEVICE)
    work = AttentionWork(
        positions,
        starts,
        page_table.to(DEVICE),
        by_block[0].contiguous(),
        by_block[1].contiguous(),
        case.tokens_per_block,
        case.splits,
    )
    return attend(q, cache, work, case.scale, case.window, case.softcap).cpu(), cache


def leave_nothing_behind(cache: LayerCache) -> None:
    """Whoever had the pages before left no numbers there."""
    if cache.kind != 1:
        for pool in (cache.keys, cache.values) if cache.kind == 0 else ():
            pool.fill_(float("nan"))
        return
    for scale in (cache.key_scale, cache.value_scale):
        assert scale is not None
        scale.fill_(float("nan"))


def store(
    model: Model, cache: LayerCache, table: torch.Tensor, spans: list[tuple[int, int]]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rotated queries, positions and query starts of one step over these positions."""
    size = cache.page_size
    positions = [position for span in spans for position in range(*span)]
    slots = [
        int(table[number, position // size]) * size + position % size
        for number, span in enumerate(spans)
        for position in range(*span)
    ]
    lengths = torch.tensor([0, *(end - start for start, end in spans)])
    starts = lengths.cumsum(0).to(torch.int32).to(DEVICE)

    def of(rows: list[torch.Tensor]) -> torch.Tensor:
        parts = [row[slice(*span)] for row, span in zip(rows, spans, strict=True)]
        return torch.cat(parts).to(DEVICE)

    at = torch.tensor(positions, dtype=torch.int32, device=DEVICE)
    where = torch.tensor(slots, dtype=torch.int32, device=DEVICE)
    rope = RopeTable(model.rope.cos.to(DEVICE), model.rope.sin.to(DEVICE))
    norm = model.norm and HeadNorm(
        model.norm.query.to(DEVICE), model.norm.key.to(DEVICE), model.norm.eps
    )
    # Keys and values are columns of one wider tensor, as a fused product gives them.
    fused = torch.cat((of(model.k), of(model.v)), dim=1)
    half = fused.shape[1] // 2
    k, v = fused[:, :half], fused[:, half:]
    return rotate_and_store(of(model.q), k, v, at, where, cache, rope, norm), at, starts


CASES = (
    Case(),
    Case(splits=3),
    Case(tokens_per_block=4, splits=2, window=7, softcap=5.0, normed=True),
    Case(tokens_per_block=8, heads=3, kv_heads=3, head_dim=16),
    Case(tokens_per_block=4, heads=5, kv_heads=1, head_dim=40, rotated=40, softcap=2.0),
    Case(window=1, splits=2),
    Case(page=64, sequences=((60, 9), (30, 1)), tokens_per_block=4, splits=2, window=40),
)


@pytest.mark.parametrize("case", CASES)
def test_attention_is_that_of_float64(case: Case) -> None:
    model = Model(case, seed=1)
    found, _ = run(model)
    # Scores are sums of head_dim products, a few in size; what they are off by is what the weights
    # are off by, relatively: 40 half steps each for sums and functions of numbers below 32.
    bound = 40 * 32 * 2.0**-24
    assert (found.double() - model.exact()).abs().max() <= bound


@settings(max_examples=4, deadline=None)
@given(
    st.integers(0, 2**31),
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 4)), min_size=1, max_size=2),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 4),
    st.sampled_from([None, 1, 5, 16]),
)
def test_any_ragged_step(
    seed: int, sequences: list[tuple[int, int]], block: int, splits: int, window: int | None
) -> None:
    case = Case(
        heads=2,
        kv_heads=1,
        sequences=tuple(sequences),
        tokens_per_block=block,
        splits=splits,
        window=window,
        normed=True,
    )
    model = Model(case, seed)
    found, _ = run(model)
    assert (found.double() - model.exact()).abs().max() <= 40 * 32 * 2.0**-24


@pytest.mark.parametrize(("number", "stored"), [("int8", False), ("int8", True), ("e4m3", True)])
def test_a_rounded_cache_answers_from_the_numbers_that_it_holds(
    number: Literal["int8", "e4m3"], stored: bool
) -> None:
    case = Case(tokens_per_block=4, splits=2)
    rounded = replace(case, number=number, stored_scales=stored)
    found, cache = run(Model(rounded, seed=2))
    exact_found, exact_cache = run(Model(case, seed=2))
    assert cache.key_scale is not None
    scale = cache.key_scale if stored else cache.key_scale[..., None]
    keys, exact = cache.keys.float() * scale, exact_cache.keys
    written = exact == exact
    assert not torch.isnan(keys[written]).any()
    # Half a step: of e4m3 a sixteenth of the number, or of its smallest ones; of int8 the scale.
    small = KV_SCALES[0] * 2.0**-10
    step = (
        exact.abs() * 2.0**-4 + small if number == "e4m3" else (scale / 2 * 1.001).expand_as(exact)
    )
    held = exact.abs() <= (448 if number == "e4m3" else 127) * scale
    assert (((keys - exact).abs() <= step) | ~held | ~written).all() and bool(held.any())
    assert 0 < (found - exact_found).abs().max() < 3


def test_the_scales_of_a_cache_count_as_its_bytes() -> None:
    shape = (3, 2, PAGE, 8)
    plain = make_cache("bfloat16", shape, DEVICE)
    small = make_cache("int8", shape, DEVICE)
    assert plain.nbytes == 2 * 2 * 3 * 2 * PAGE * 8
    assert small.nbytes == 2 * (3 * 2 * PAGE * 8 + 4 * 3 * 2 * PAGE)


# The interpreter casts NaN to a number of e4m3, and a GPU to the NaN that it has.
@pytest.mark.parametrize("number", ["float32", "int8", *(["e4m3"] if COMPILED else [])])
def test_what_is_no_number_stays_none(number: CacheNumber) -> None:
    """A key that is no number is read as none, whatever it was rounded to."""
    cache = make_cache(number, (2, 1, PAGE, 8), DEVICE)
    rows = torch.ones(1, 8, device=DEVICE)
    wrong = rows.clone()
    wrong[0, 3] = float("nan")
    at = torch.tensor([2], dtype=torch.int32, device=DEVICE)
    rotate_and_store(rows, wrong, rows, at, PAGE + at, cache, None)
    held = cache.keys[1, 0, 2].float()
    if number == "int8":
        assert cache.key_scale is not None
        held = held * cache.key_scale[1, 0, 2]
    assert torch.isnan(held[3]) and not torch.isnan(cache.values[1, 0, 2].float()).any()
