"""Where guesses come from, what they are worth, and what they cost."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engine.speculation.acceptance import Acceptance
from runtime.engine.speculation.costs import StepCosts
from runtime.engine.speculation.ngrams import LONG, SHORT, NgramIndex, continuation
from runtime.engine.speculation.speculator import Bill

TEXT = st.lists(st.integers(0, 3), min_size=1, max_size=60)


def slow_find(tokens: list[int]) -> tuple[int, bool] | None:
    for length in (LONG, SHORT):
        for place in range(len(tokens) - 1, length - 1, -1):
            if tokens[place - length : place] == tokens[-length:]:
                return place, length == LONG
    return None


@given(text=TEXT, parts=st.lists(st.integers(1, 9)))
def test_the_index_finds_the_latest_place_however_it_grew(
    text: list[int], parts: list[int]
) -> None:
    index = NgramIndex()
    known = 0
    for part in parts:
        known = min(len(text), known + part)
        while not index.extend(text[:known], 5):
            pass
        assert index.find(text[:known]) == slow_find(text[:known])
    while not index.extend(text, 5):
        pass
    assert index.find(text) == slow_find(text)


@given(text=TEXT, count=st.integers(0, 20))
def test_a_continuation_is_what_the_text_would_be_if_it_went_on_repeating(
    text: list[int], count: int
) -> None:
    for place in range(len(text)):
        expected = list(text)
        period = len(text) - place
        for _ in range(count):
            expected.append(expected[-period])
        assert continuation(text, place, count) == expected[len(text) :]


def test_an_opinion_follows_what_happens_and_comes_back() -> None:
    acceptance = Acceptance()
    prior = acceptance.rate
    for _ in range(30):
        acceptance.note(4, 4)
    assert acceptance.rate > 0.95
    for _ in range(60):
        acceptance.note(4, 0)
    assert acceptance.rate < 0.2
    for _ in range(300):
        acceptance.fade()
    assert acceptance.rate == pytest.approx(prior, abs=0.01)


@given(
    fixed=st.floats(0, 1),
    each=st.floats(0, 1),
    sizes=st.lists(st.integers(1, 40), min_size=2, max_size=30),
)
def test_costs_of_a_machine_that_keeps_to_a_line(
    fixed: float, each: float, sizes: list[int]
) -> None:
    costs = StepCosts()
    assert costs.line() == (0, 0)
    for size in sizes:
        costs.note(size, fixed + each * size)
    found_fixed, found_each = costs.line()
    if len(set(sizes)) == 1:
        assert found_each == 0 and found_fixed == pytest.approx(fixed + each * sizes[0])
    else:
        # Sums of squares up to 1600 in float64 leave nine digits of the slope.
        assert found_each == pytest.approx(each, abs=1e-6)
        assert found_fixed == pytest.approx(fixed, abs=1e-4)


def test_costs_follow_a_machine_that_changes_and_are_never_negative() -> None:
    costs = StepCosts()
    for size in (1, 8) * 100:
        costs.note(size, 1.0 + size)
    for size in (1, 8) * 200:
        costs.note(size, 0.1 + 0.01 * size)
    assert costs.line() == pytest.approx((0.1, 0.01), abs=0.001)
    costs = StepCosts()
    costs.note(1, 0.0)
    costs.note(2, 5.0)
    assert costs.line()[0] == 0.0
    costs = StepCosts()
    costs.note(1, 5.0)
    costs.note(2, 1.0)
    assert costs.line()[1] == 0.0


@given(
    hits=st.integers(0, 30),
    misses=st.integers(0, 30),
    fixed=st.floats(0.01, 1),
    each=st.floats(0.001, 1),
    streams=st.integers(1, 16),
)
def test_as_many_guesses_as_give_the_most_tokens_per_second(
    hits: int, misses: int, fixed: float, each: float, streams: int
) -> None:
    """Against trying every number of guesses."""
    acceptance = Acceptance()
    acceptance._hits, acceptance._misses = hits, misses
    rate, most = acceptance.rate, 12

    def speed(count: int) -> float:
        tokens = streams + sum(rate**i for i in range(1, count + 1))
        return tokens / (fixed + each * (streams + count))

    count = Bill(fixed + each * streams, streams, each).count(acceptance, most)
    best = max(speed(n) for n in range(most + 1))
    if count < most and rate ** (count + 1) > 0.1:
        assert speed(count) == pytest.approx(best)
    assert speed(count) >= speed(0) * (1 - 1e-12)
