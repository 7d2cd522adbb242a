"""W5, in short: the same as `python -m benchmarks.soak`, against a server without a model."""

import asyncio
import os
import time
from functools import partial
from math import inf
from typing import Any

import pytest

from benchmarks.soak.__main__ import soak
from benchmarks.soak.clients import Books, capacity
from benchmarks.soak.report import falls, figures, slope, summary, verdicts
from benchmarks.soak.watching import Sample
from tests.runtime.server.harness import ScriptedExecutor, running


def test_a_short_soak_closes_its_books() -> None:
    """With bursts: some are told to come back."""
    pace = ScriptedExecutor(hold=partial(time.sleep, 0.002))
    with running(pace, max_waiting=4, max_running=4) as server:
        assert asyncio.run(capacity(server.url, 0.5, streams=2)) > 0
        before = server.thread.stats().requests
        run = soak(server.url, [os.getpid()], 1.0, 20.0, burst=40, round_seconds=0.5)
        samples, books = asyncio.run(run)
        stats = server.thread.stats()
    found = figures(samples, books)
    # Whatever came late, eight of a burst find room.
    assert len(samples) >= 3 and books.accepted >= 8
    assert set(books.outcomes) <= {"complete", "left", "429"}
    assert sum(books.outcomes.values()) - books.outcomes["429"] == books.accepted
    assert stats.requests == sum(stats.finished.values()) == books.accepted + before
    told = {name: holds for name, (holds, _) in verdicts(found).items()}
    for name in (
        "no counter falls",
        "what was accepted has ended for one reason",
        "no page is in use at the end",
    ):
        assert told[name], summary(found)


def test_growth_is_the_slope_of_a_line_and_as_certain_as_its_points() -> None:
    exact = slope([(0, 1), (1, 3), (2, 5)])
    assert exact.each == pytest.approx(2) and exact.margin == pytest.approx(0, abs=1e-9)
    # Five points: sum of squares beside the line 1.6, Student's t for three degrees of freedom.
    rough = slope([(0, 0), (1, 2), (2, 2), (3, 2), (4, 4)])
    assert rough.each == pytest.approx(0.8)
    assert rough.margin == pytest.approx(3.18 * (1.6 / 3 / 10) ** 0.5)
    assert slope([(5, 7)]).margin == slope([(0, 1), (1, 3)]).margin == inf


def test_a_counter_that_falls_is_named() -> None:
    rising = [sample(t, {"coldpress_steps_total": t, "coldpress_x": -t}) for t in (0, 1, 2)]
    assert falls(rising) == []
    assert falls(rising[::-1]) == ["coldpress_steps_total"]


def sample(seconds: float, counters: dict[str, float], private: int = 0, fds: int = 9) -> Sample:
    return Sample(seconds, private, 2 * private, fds, counters)


@pytest.mark.parametrize(
    ("growth", "noise", "holds"), [(0.2, 0.0, True), (5.0, 0.0, False), (0.9, 3e5, None)]
)
def test_the_verdict_on_memory(growth: float, noise: float, holds: bool | None) -> None:
    """growth: MB an hour, one sample a minute. noise: bytes up and down."""
    samples = [
        sample(60 * i, {}, int(1e8 + growth * 1e6 * i / 60 + noise * (-1) ** i)) for i in range(40)
    ]
    found = figures(samples, Books())
    told, words = verdicts(found)["memory grows by less than 1 MB an hour"]
    assert told is holds and "MB an hour" in words
    assert ("cannot be told" in summary(found)) == (holds is None)


def test_books_that_do_not_close_fail() -> None:
    ends = {'coldpress_answers_total{finish_reason="length"}': 3.0}
    bad: list[Any] = [sample(0, {}), sample(1, ends, fds=9), sample(2, ends, fds=10)]
    told = verdicts(figures(bad, Books(accepted=4)))
    assert told["what was accepted has ended for one reason"][0] is False
    assert told["descriptors stay the same"][0] is False
