"""Scores against sums written out, and errors against repetition."""

import math

import numpy as np
import numpy.typing as npt
import pytest

from benchmarks.quality.scores import (
    KLD,
    LOSS,
    TOP1,
    Baseline,
    ratio,
    score_window,
    standard_error,
    summarize,
)

VOCAB = 7
POSITIONS = 21
"""More than one chunk, and a chunk that is not full."""


def draw(seed: int, *shape: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 3, shape).astype(np.float32)


def softmax(row: npt.NDArray[np.float32]) -> list[float]:
    total = sum(math.exp(float(value)) for value in row)
    return [math.exp(float(value)) / total for value in row]


def test_every_position_is_scored_as_its_definition_says() -> None:
    logits, base = draw(0, POSITIONS, VOCAB), draw(1, POSITIONS, VOCAB)
    targets = np.arange(POSITIONS) % VOCAB
    scores = score_window(logits, base, targets)
    for i, target in enumerate(targets):
        ours, theirs = softmax(logits[i]), softmax(base[i])
        kld = sum(p * math.log(p / q) for p, q in zip(theirs, ours, strict=True))
        assert scores[LOSS, i] == pytest.approx(-math.log(ours[target]), rel=1e-10)
        assert scores[KLD, i] == pytest.approx(kld, rel=1e-10)
        assert scores[TOP1, i] == (np.argmax(ours) == np.argmax(theirs))
    assert 0 < scores[TOP1].sum() < POSITIONS


def test_a_model_is_no_distance_from_itself_and_constants_do_not_count() -> None:
    base = draw(2, POSITIONS, VOCAB)
    scores = score_window(base + np.float32(8.0), base, np.zeros(POSITIONS, dtype=np.int64))
    # Adding 8 rounds float32 logits below 32 in size by at most 2^-19 or so, KLD is its square.
    assert scores[KLD].max() < 1e-10
    assert scores[TOP1].all()


def test_the_baseline_is_its_hidden_states_times_its_head() -> None:
    baseline = Baseline(draw(3, 2, POSITIONS, 5), draw(4, VOCAB, 5))
    expected = np.einsum("ph,vh->pv", baseline.hidden[1], baseline.head)
    np.testing.assert_allclose(baseline.logits(1), expected, rtol=1e-4, atol=1e-4)


def test_the_summary_is_of_all_positions() -> None:
    scores = np.stack(
        [score_window(draw(s, 4, VOCAB), draw(9, 4, VOCAB), np.arange(4)) for s in (5, 6)]
    )
    summary = summarize(scores)
    assert summary.positions == 8
    assert summary.perplexity == pytest.approx(math.exp(scores[:, LOSS].sum() / 8))
    assert summary.kld.mean == pytest.approx(scores[:, KLD].sum() / 8)
    assert summary.top1 == scores[:, TOP1].sum() / 8


def test_positions_of_a_window_that_are_alike_do_not_shrink_the_error() -> None:
    windows = draw(7, 30, 1).astype(np.float64)
    expected = float(windows.std(ddof=1)) / math.sqrt(30)
    assert standard_error(windows) == pytest.approx(expected)
    assert standard_error(np.repeat(windows, 50, axis=1)) == pytest.approx(expected)


def test_one_window_has_its_positions_to_go_by() -> None:
    assert standard_error(np.array([[1.0, 3.0]])) == pytest.approx(1.0)


def test_a_ratio_has_no_error_where_every_window_agrees_on_it() -> None:
    theirs = np.abs(draw(8, 12, 3)).astype(np.float64)
    assert ratio(0.5 * theirs, theirs).mean == pytest.approx(0.5)
    assert ratio(0.5 * theirs, theirs).se == pytest.approx(0.0, abs=1e-12)


def test_the_error_of_a_ratio_is_what_repetition_shows() -> None:
    """2,000 contests of 40 windows: the spread of an estimate of spread is 1/sqrt(2 n), 1.6 %; five
    of these, and 2 % for the delta method's own second order."""
    rng = np.random.default_rng(0)
    found = []
    for _ in range(2000):
        hard = rng.uniform(0.5, 1.5, (40, 1))
        found.append(ratio(hard * rng.uniform(0.2, 0.6, (40, 1)), hard))
    spread = np.std([estimate.mean for estimate in found])
    told = math.sqrt(np.mean([estimate.se**2 for estimate in found]))
    assert told == pytest.approx(float(spread), rel=0.1)
