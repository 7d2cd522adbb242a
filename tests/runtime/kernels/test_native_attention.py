"""Paged attention against float64 over random shapes, pages and positions."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.kernels.cpu._native import Matrix, Plan
from tests.runtime.kernels.harness import ISAS, POOLS, Floats, gamma, random_floats, run_rows


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


def attend(case: Case, x: Floats, isa: str, threads: int = 1, number: str = "float32") -> Floats:
    """x: float32 [tokens, q | k | v]; every token in one step, on scrambled pages."""

    def build(plan: Plan, source: int) -> int:
        parts, start = [], 0
        for width in case.widths:
            rows = np.ascontiguousarray(np.eye(x.shape[1], dtype=np.float32)[start : start + width])
            parts.append(
                (
                    plan.add_buffer(width, False),
                    Matrix.from_numbers(rows, "float32", POOLS[1]),
                    None,
                )
            )
            start += width
        plan.add_linear(source, parts)
        q, k, v = (part[0] for part in parts)
        out = plan.add_buffer(case.widths[0], False)
        heads = case.kv_heads * case.shared
        cache = plan.add_cache(case.kv_heads, case.head_dim, number)
        sizes = (heads, case.kv_heads, case.head_dim)
        plan.add_attend(out, q, k, v, cache, *sizes, case.scale, case.window, case.softcap)
        return out

    pages = -(-case.tokens // case.page_size)
    table = 1 + np.random.default_rng(case.seed).permutation(pages).astype(np.int32)
    positions = np.arange(case.tokens, dtype=np.int32)
    return run_rows(
        x,
        build,
        isa,
        threads=threads,
        positions=positions,
        page_table=table[None],
        page_size=case.page_size,
        num_pages=pages + 1,
    )


def split(case: Case, x: Floats) -> list[npt.NDArray[np.float64]]:
    """q, k and v, [tokens, heads, head_dim], the last two repeated for each query head."""
    q, k, v = np.split(x.astype(np.float64), np.cumsum(case.widths)[:2], axis=1)
    shape = (case.tokens, -1, case.head_dim)
    return [
        q.reshape(shape),
        k.reshape(shape).repeat(case.shared, 1),
        v.reshape(shape).repeat(case.shared, 1),
    ]


def reference(case: Case, x: Floats) -> npt.NDArray[np.float64]:
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


def bound(case: Case, x: Floats) -> float:
    """An error d of a score changes its weight by a factor e**d; sums and rescalings round too."""
    q, k, v = split(case, x)
    size = np.einsum("qhd,khd->hqk", np.abs(q), np.abs(k)).max() * case.scale
    pages = -(-case.tokens // case.page_size)
    score = gamma(case.head_dim + 2) * size + (64 * gamma(1) * case.softcap)
    # The exponential's argument is a difference of two scores, and pages rescale one another.
    weight = 2 * score + gamma(2) * size + (pages + 2) * gamma(12)
    return float(np.expm1(2 * weight + 2 * gamma(case.tokens + pages + 4)) * np.abs(v).max())


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=50)
@given(case=cases)
def test_attention_is_within_the_error_of_its_sums(isa: str, case: Case) -> None:
    x = random_floats((case.tokens, sum(case.widths)), case.seed)
    found = attend(case, x, isa)
    assert np.abs(found - reference(case, x)).max() <= bound(case, x)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=25)
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


@settings(max_examples=20)
@given(case=cases)
def test_threads_change_no_bit(case: Case) -> None:
    x = random_floats((case.tokens, sum(case.widths)), case.seed)
    np.testing.assert_array_equal(attend(case, x, "auto", 2), attend(case, x, "auto", 1))


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
@pytest.mark.parametrize("shared", [1, 3, 9])
@pytest.mark.parametrize("window", [0, 7])
def test_what_is_not_seen_is_not_read(isa: str, shared: int, window: int) -> None:
    """Keys and values of a later token, or another's in the page, may be no numbers."""
    case = Case(2, shared, 20, 21, 16, window, 0.0, 5)
    x = random_floats((case.tokens, sum(case.widths)), 5)
    clean = attend(case, x, isa)
    x[-1] = np.nan
    found = attend(case, x, isa)
    np.testing.assert_array_equal(found[:-1], clean[:-1])
    assert np.isnan(found[-1]).all()
