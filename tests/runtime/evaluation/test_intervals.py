"""Intervals: they hold what they promise, also where neighbours say the same."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.evaluation.intervals import (
    BLOCK_TOKENS,
    FEWEST_BLOCKS,
    SHORTEST_BLOCK,
    Blocks,
    Estimate,
    cut_blocks,
    estimate,
    mean_interval,
    quantile_interval,
    share_interval,
    student_t,
)

TOKENS = 16 * 512
ROUNDS = 400
# 400 rounds of an interval that holds 95 % of the time: fewer than 364 hits come once in 7000
# such tests (binomial); the seed is fixed all the same.
FEWEST_HITS = 364


def correlated(rng: np.random.Generator, memory: float) -> npt.NDArray[np.float64]:
    """A first-order process with mean 0: each token remembers a part of the last."""
    noise = rng.standard_normal(TOKENS).tolist()
    values = [noise[0] / math.sqrt(1 - memory**2)]
    for fresh in noise[1:]:
        values.append(memory * values[-1] + fresh)
    return np.array(values)


@pytest.mark.parametrize("memory", [0.0, 0.8])
def test_intervals_hold_the_truth_as_often_as_they_say(memory: float) -> None:
    rng = np.random.default_rng(7)
    blocks = cut_blocks(TOKENS)
    hits = naive = shares = quantiles = 0
    deviation = 1 / math.sqrt(1 - memory**2)
    true_p90 = 1.2815515655446004 * deviation
    for _ in range(ROUNDS):
        values = correlated(rng, memory)
        low, high = mean_interval(estimate(values, blocks), blocks)
        hits += low <= 0 <= high
        naive += abs(values.mean()) <= 1.96 * values.std() / math.sqrt(len(values))
        low, high = share_interval(estimate((values > 0).astype(np.float64), blocks), blocks)
        shares += low <= 0.5 <= high
        low, high = quantile_interval(values, 0.9, blocks)
        quantiles += low <= true_p90 <= high
    assert min(hits, shares, quantiles) >= FEWEST_HITS
    assert naive < FEWEST_HITS or memory == 0, "tokens are not independent"


def test_errors_are_those_of_independent_tokens_where_they_are() -> None:
    values = np.random.default_rng(3).standard_normal(200 * 512)
    found = estimate(values, cut_blocks(len(values)))
    # The error of an error from 200 blocks is 1 / sqrt(2 * 199) = 5 %: four of them.
    assert found.se == pytest.approx(1 / math.sqrt(len(values)), rel=0.2)


@given(st.integers(1, 100_000))
def test_blocks_cover_every_token(tokens: int) -> None:
    blocks = cut_blocks(tokens)
    lengths = np.diff([*blocks.starts.tolist(), tokens])
    assert blocks.starts[0] == 0 and lengths.max() - lengths.min() <= 1
    if blocks.count >= FEWEST_BLOCKS and tokens >= FEWEST_BLOCKS * BLOCK_TOKENS:
        assert BLOCK_TOKENS <= lengths.min() < 2 * BLOCK_TOKENS
    else:
        assert blocks.count == 1 or lengths.min() >= SHORTEST_BLOCK


# Tables of Student's distribution, two-sided 95 %.
@pytest.mark.parametrize(
    ("degrees", "t"), [(1, 12.7062), (2, 4.30265), (5, 2.57058), (10, 2.22814), (100, 1.98397)]
)
def test_student(degrees: int, t: float) -> None:
    assert student_t(degrees) == pytest.approx(t, abs=1e-5)
    assert student_t(0) == math.inf


@given(
    st.integers(1, 10_000),
    st.sampled_from([0.0, 1.0]) | st.floats(1e-9, 1 - 1e-9),
    st.floats(0, 0.5),
    st.integers(2, 500),
)
def test_a_share_stays_a_share(tokens: int, mean: float, se: float, count: int) -> None:
    blocks = Blocks(np.arange(count), max(tokens, count))
    low, high = share_interval(Estimate(mean, se), blocks)
    assert 0 <= low <= high <= 1
    assert low <= mean + 1e-12 and mean - 1e-12 <= high
    assert high - low > 0, "no text is long enough to be sure"


def test_one_block_says_nothing() -> None:
    values, blocks = np.ones(20), cut_blocks(20)
    found = estimate(values, blocks)
    assert found == Estimate(1.0, None)
    assert mean_interval(found, blocks, least=0.0) == (0.0, math.inf)
    assert share_interval(found, blocks) == (0.0, 1.0)
