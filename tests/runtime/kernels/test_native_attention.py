"""Paged attention against float64 over random shapes, pages and positions."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ml_dtypes import bfloat16

from runtime.kernels.cpu._native import Matrix, Plan
from tests.runtime.kernels.harness import ISAS, POOLS, Floats, gamma, random_floats

PAIRS = "bfloat16 by bfloat16"
BYTES = "int8 by two of int8"
"""Of which queries and weights are rounded as well."""
NUMBERS = ["float32", "float16", "bfloat16", PAIRS, "int8", BYTES]


@dataclass(frozen=True)
class Case:
    kv_heads: int
    shared: int
    head_dim: int
    tokens: int
    page_size: int
    window: int
    softcap: float
    seed: int

    @property
    def widths(self) -> tuple[int, int, int]:
        kv_width = self.kv_heads * self.head_dim
        return self.shared * kv_width, kv_width, kv_width

    @property
    def scale(self) -> float:
        return float(np.float32(self.head_dim**-0.5))


cases = st.builds(
    Case,
    kv_heads=st.integers(1, 3),
    shared=st.integers(1, 9),
    head_dim=st.sampled_from([2, 8, 16, 20, 64]),
    tokens=st.integers(1, 70),
    page_size=st.sampled_from([1, 3, 16, 32, 50]),
    window=st.sampled_from([0, 1, 7, 40]),
    softcap=st.sampled_from([0.0, 2.0]),
    seed=st.integers(0, 999),
)

long_cases = st.builds(
    Case,
    kv_heads=st.just(1),
    shared=st.integers(1, 3),
    head_dim=st.sampled_from([2, 20]),
    tokens=st.integers(500, 540),
    page_size=st.sampled_from([16, 32, 50, 300]),
    window=st.sampled_from([0, 40, 300]),
    softcap=st.sampled_from([0.0, 2.0]),
    seed=st.integers(0, 999),
)
"""Contexts of several stretches, which are summed apart."""


def attend(case: Case, x: Floats, isa: str, threads: int = 1, number: str = "float32") -> Floats:
    """x: float32 [tokens, q | k | v]; every token in one step, on scrambled pages."""
    return attend_in_steps(case, x, isa, [len(x)], threads, number)


def attend_in_steps(
    case: Case,
    x: Floats,
    isa: str,
    steps: Sequence[int],
    threads: int = 1,
    number: str = "float32",
) -> Floats:
    """As `attend`, so many tokens after so many."""
    pool = POOLS[threads]
    plan = Plan(pool, isa)
    source = plan.add_buffer(x.shape[1], False)
    plan.add_embed(source, Matrix.from_numbers(x, "float32", pool))
    q, k, v = (plan.add_buffer(width, False) for width in case.widths)
    for part, start in ((q, 0), (k, case.widths[0]), (v, sum(case.widths[:2]))):
        plan.add_slice(part, source, start)
    out = plan.add_buffer(case.widths[0], False)
    cache = plan.add_cache(case.kv_heads, case.head_dim, number.partition(" ")[0])
    sizes = (case.kv_heads * case.shared, case.kv_heads, case.head_dim)
    how = (case.scale, case.window, case.softcap)
    plan.add_attend(out, q, k, v, cache, *sizes, *how, rounded=" by " in number)
    pages = -(-case.tokens // case.page_size)
    table = 1 + np.random.default_rng(case.seed).permutation(pages).astype(np.int32)[None]
    plan.allocate(pages + 1, case.page_size, 1, len(x))
    found, start = [], 0
    for count in steps:
        tokens = np.arange(start, start + count, dtype=np.int32)
        starts, rows = np.array([0, count], np.int32), np.arange(count, dtype=np.int32)
        found.append(plan.step(tokens, tokens, starts, table, rows, out).copy())
        start += count
    return np.concatenate(found)


def rounded_to_int8(x: Floats) -> tuple[npt.NDArray[np.float64], Floats]:
    """The nearest of 255 multiples of the largest magnitude / 127, for each head [..., head_dim];
    and those scales."""
    smallest = np.finfo(np.float32).tiny
    scale = np.maximum(np.abs(x).max(-1, keepdims=True) / np.float32(127), smallest)
    return np.rint(np.clip(x / scale, -127, 127)).astype(np.float64) * scale, scale


def with_cache_in_int8(case: Case, x: Floats) -> npt.NDArray[np.float64]:
    """float64 [tokens, q | k | v]: x, with keys and values as the cache holds them."""
    start = case.widths[0]
    cached, _ = rounded_to_int8(x[:, start:].reshape(len(x), -1, case.head_dim))
    return np.concatenate([x[:, :start].astype(np.float64), cached.reshape(len(x), -1)], axis=1)


def with_cache_in_bfloat16(case: Case, x: Floats) -> Floats:
    start = case.widths[0]
    return np.concatenate([x[:, :start], x[:, start:].astype(bfloat16).astype(np.float32)], axis=1)


def with_all_in_bfloat16(case: Case, x: Floats) -> npt.NDArray[np.float64]:
    """Queries are rounded once they bear the scale of their scores, in powers of two."""
    factor = np.float32(case.scale) * np.float32(np.log2(np.e))
    if case.softcap:
        factor = np.float32(case.scale) / np.float32(case.softcap)
    cached = with_cache_in_bfloat16(case, x).astype(np.float64)
    queries = (x[:, : case.widths[0]] * factor).astype(bfloat16).astype(np.float64)
    cached[:, : case.widths[0]] = queries / np.float64(factor)
    return cached


def split(case: Case, x: npt.NDArray[Any]) -> list[npt.NDArray[np.float64]]:
    """q, k and v, [tokens, heads, head_dim], the last two repeated for each query head."""
    q, k, v = np.split(x.astype(np.float64), np.cumsum(case.widths)[:2], axis=1)
    shape = (case.tokens, -1, case.head_dim)
    return [
        q.reshape(shape),
        k.reshape(shape).repeat(case.shared, 1),
        v.reshape(shape).repeat(case.shared, 1),
    ]


def reference(case: Case, x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    q, k, v = split(case, x)
    scores = np.einsum("qhd,khd->hqk", q, k) * case.scale
    if case.softcap:
        scores = case.softcap * np.tanh(scores / case.softcap)
    back = np.arange(case.tokens)[:, None] - np.arange(case.tokens)
    seen = (back >= 0) & ((back < case.window) | (case.window == 0))
    weights = np.where(seen, np.exp(scores - scores.max()), 0.0)
    weights /= weights.sum(-1, keepdims=True)
    mixed: npt.NDArray[np.float64] = np.einsum("hqk,khd->qhd", weights, v)
    return mixed.reshape(case.tokens, -1)


def bound(
    case: Case,
    x: npt.NDArray[Any],
    moved: float = 0.0,
    lost: float = 0.0,
    rounded: float = 0.0,
) -> float:
    """An error d of a score changes its weight by a factor e**d; sums and rescalings round too, as
    do the products with scales. Scores may have `moved`, and values have `lost` so much, before;
    weights are `rounded`, relatively."""
    q, k, v = split(case, x)
    size = np.einsum("qhd,khd->hqk", np.abs(q), np.abs(k)).max() * case.scale
    pages = -(-case.tokens // case.page_size)
    score = moved + gamma(case.head_dim + 4) * size + (64 * gamma(1) * case.softcap)
    # The exponential's argument is a difference of two scores, and pages rescale one another.
    weight = 2 * score + gamma(2) * size + (pages + 2) * gamma(12) - np.log1p(-rounded)
    spread = np.expm1(2 * weight + 2 * gamma(case.tokens + pages + 6))
    return float(spread * (np.abs(v).max() + lost) + lost)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=40)
@given(case=cases | long_cases)
def test_attention_is_within_the_error_of_its_sums(isa: str, case: Case) -> None:
    x = random_floats((case.tokens, sum(case.widths)), case.seed)
    found = attend(case, x, isa)
    assert np.abs(found - reference(case, x)).max() <= bound(case, x)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=20)
@given(case=cases | long_cases)
def test_a_cache_in_bfloat16_is_multiplied_by_floats(isa: str, case: Case) -> None:
    x = random_floats((case.tokens, sum(case.widths)), case.seed)
    cached = with_cache_in_bfloat16(case, x)
    found = attend(case, x, isa, number="bfloat16")
    assert np.abs(found - reference(case, cached)).max() <= bound(case, cached)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=30)
@given(case=cases | long_cases)
def test_products_of_bfloat16_are_off_by_their_roundings_alone(isa: str, case: Case) -> None:
    """Weights are rounded to 8 bits, and it is the rounded ones that are summed."""
    x = random_floats((case.tokens, sum(case.widths)), case.seed)
    rounded = with_all_in_bfloat16(case, x)
    found = attend(case, x, isa, number=PAIRS)
    assert np.abs(found - reference(case, rounded)).max() <= bound(case, rounded, rounded=2.0**-8)


@pytest.mark.parametrize("like", ["avx512", "avx2"])
@settings(max_examples=20)
@given(case=cases | long_cases, size=st.sampled_from([1.0, 1e-19, 1e-30, 1e19]))
def test_products_of_bfloat16_have_the_same_bits_with_and_without_the_instruction(
    like: str, case: Case, size: float
) -> None:
    """Those of small numbers are below the normal ones, which the instruction counts as zeros."""
    x = random_floats((case.tokens, sum(case.widths)), case.seed) * np.float32(size)
    same = [isa for isa in ISAS if isa.startswith(like)]
    for isa in same[1:]:
        found = attend(case, x, isa, number=PAIRS)
        np.testing.assert_array_equal(found, attend(case, x, same[0], number=PAIRS))


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=20)
@given(case=cases | long_cases)
def test_a_cache_in_int8_is_off_by_its_roundings_alone(isa: str, case: Case) -> None:
    """Against keys and values rounded in NumPy: the arithmetic. Against those that were not:
    elements are off by half a scale at most, scores by as much of q's absolute sum."""
    x = random_floats((case.tokens, sum(case.widths)), case.seed)
    found = attend(case, x, isa, number="int8")
    cached = with_cache_in_int8(case, x)
    assert np.abs(found - reference(case, cached)).max() <= bound(case, cached)
    q, k, v = (part.astype(np.float32) for part in split(case, x))
    steps = [rounded_to_int8(part)[1].max() * (0.5 + 1e-5) for part in (k, v)]
    moved = float(np.abs(q).sum(-1).max() * steps[0] * case.scale)
    error = np.abs(found - reference(case, x)).max()
    assert error <= bound(case, x, moved, float(steps[1]))


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=30)
@given(case=cases | long_cases)
def test_products_of_bytes_are_off_by_their_roundings_alone(isa: str, case: Case) -> None:
    """A query is rounded to multiples of its largest element / 32639; a weight times the scale of
    its values to multiples of the largest of a stretch / 65535, and the largest weight is 1."""
    x = random_floats((case.tokens, sum(case.widths)), case.seed)
    cached = with_cache_in_int8(case, x)
    q, k, v = split(case, cached)
    half = 0.5 + 65535 * gamma(5)  # what is rounded has been before
    moved = np.abs(q).max() * half / 32639 * np.abs(k).sum(-1).max() * case.scale
    stretch = min(max(256, case.page_size), case.tokens)
    lost = stretch * half / 65535 * np.abs(v).max()
    found = attend(case, x, isa, number=BYTES)
    error = np.abs(found - reference(case, cached)).max()
    assert error <= bound(case, cached, float(moved), float(lost))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("number", ["int8", BYTES])
def test_int8_holds_every_size_of_number(isa: str, number: str) -> None:
    """A token that sees itself alone gives its values back as they are cached."""
    sizes = np.array([0.0, 1e-45, 3e-44, 1e-38, 2e-38, 1e-20, 1.0, 1e20, 3.4e38], np.float32)
    case = Case(1, 1, 20, len(sizes), 4, 1, 0.0, 0)
    x = random_floats((case.tokens, 60), 0)
    x[:, 40:] = np.clip(x[:, 40:], -1, 1) * sizes[:, None]
    x[:, 20:40] = 0.0
    found = attend(case, x, isa, number=number)
    expected, _ = rounded_to_int8(x[:, 40:])
    np.testing.assert_array_equal(found, expected.astype(np.float32))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("number", ["bfloat16", PAIRS])
def test_bfloat16_holds_every_size_of_number(isa: str, number: str) -> None:
    """A token that sees itself alone gives its values back as they are cached."""
    sizes = np.array([0.0, 1e-45, 3e-44, 1e-38, 2e-38, 1e-20, 1.0, 1e20, 3.38e38], np.float32)
    case = Case(1, 1, 20, len(sizes), 4, 1, 0.0, 0)
    x = random_floats((case.tokens, 60), 0)
    x[:, 40:] = np.clip(x[:, 40:], -1, 1) * sizes[:, None]
    expected = x[:, 40:].astype(bfloat16).astype(np.float32)
    expected[np.abs(x[:, 40:]) < np.finfo(np.float32).tiny] = 0.0
    np.testing.assert_array_equal(attend(case, x, isa, number=number), expected)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=15)
@given(case=cases)
def test_halves_are_what_rounded_keys_and_values_give(isa: str, case: Case) -> None:
    """From 1e-9 to beyond the largest float16, which stands for all that is larger."""
    x = random_floats((case.tokens, sum(case.widths)), case.seed)
    start = case.widths[0]
    x[:, start] *= 1e-7
    x[:, -1] *= 1e5
    narrowed = x.copy()
    narrowed[:, start:] = np.clip(x[:, start:], -65504, 65504).astype(np.float16)
    found = attend(case, x, isa, number="float16")
    np.testing.assert_array_equal(found, attend(case, narrowed, isa))


@pytest.mark.parametrize("number", NUMBERS)
@settings(max_examples=10)
@given(case=cases | long_cases)
def test_threads_change_no_bit(number: str, case: Case) -> None:
    x = random_floats((case.tokens, sum(case.widths)), case.seed)
    alone = attend(case, x, "auto", 1, number)
    np.testing.assert_array_equal(attend(case, x, "auto", 2, number), alone)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(("window", "shared"), [(0, 3), (300, 14)])
def test_one_token_behind_many_has_the_bits_it_has_among_them(
    isa: str, number: str, window: int, shared: int
) -> None:
    """Threads take stretches of the one's context; of the many's, whole rows."""
    case = Case(2, shared, 20, 1100, 32, window, 0.0, 3)
    x = random_floats((case.tokens, sum(case.widths)), 3)
    expected = attend(case, x, isa, 1, number)
    found = attend_in_steps(case, x, isa, [1096, 1, 3], 2, number)
    np.testing.assert_array_equal(found[-4:], expected[-4:])


@pytest.mark.parametrize("isa", ISAS)
def test_scores_far_apart_neither_overflow_nor_vanish(isa: str) -> None:
    """One key's score is hundreds above all others: its value is the answer."""
    case = Case(1, 1, 16, 40, 16, 0, 0.0, 5)
    x = random_floats((40, 48), 5)
    x[:, :16] = 30.0
    x[:, 16:32] = -30.0
    x[3, 16:32] = 30.0
    found = attend(case, x, isa)
    np.testing.assert_array_equal(found[3:], np.broadcast_to(x[3, 32:], (37, 16)))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("shared", [1, 3, 9])
@pytest.mark.parametrize("window", [0, 7])
def test_what_is_not_seen_is_not_read(isa: str, number: str, shared: int, window: int) -> None:
    """Keys and values of a later token, or another's in the page, may be no numbers."""
    case = Case(2, shared, 20, 21, 16, window, 0.0, 5)
    x = random_floats((case.tokens, sum(case.widths)), 5)
    clean = attend(case, x, isa, 1, number)
    x[-1] = np.nan
    found = attend(case, x, isa, 1, number)
    np.testing.assert_array_equal(found[:-1], clean[:-1])
    assert np.isnan(found[-1]).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("part", ["key", "value"])
def test_what_is_no_number_reaches_all_who_see_it(isa: str, number: str, part: str) -> None:
    """Wherever it stands among stretches, pages and lanes; the engine looks at logits alone."""
    case = Case(1, 2, 16, 300, 32, 0, 0.0, 5)
    x = random_floats((case.tokens, 64), 5)
    column = 35 if part == "key" else 51
    for token, bad in ((0, np.nan), (37, np.inf), (255, np.nan), (299, np.nan)):
        hurt = x.copy()
        hurt[:, 3] = np.abs(x[:, 3])
        hurt[token, column] = bad
        found = attend(case, hurt, isa, 2, number)
        assert np.isfinite(found[:token]).all()
        if number != "float16" or np.isnan(bad):  # the largest stands for what is beyond float16
            assert not np.isfinite(found[token:]).all(axis=1).any()
