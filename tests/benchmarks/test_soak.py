"""W5, in short: the same as `python -m benchmarks.soak`, against a server without a model."""

import asyncio
import os
import time
from functools import partial

import pytest

from benchmarks.soak import Sample, capacity, falls, slope, soak
from tests.runtime.server.harness import ScriptedExecutor, running


def test_a_short_soak_closes_its_books() -> None:
    pace = ScriptedExecutor(hold=partial(time.sleep, 0.002))
    with running(pace) as server:
        assert asyncio.run(capacity(server.url, 0.5, streams=2)) > 0
        before = server.thread.stats().requests
        result = asyncio.run(soak(server.url, [os.getpid()], 2.0, 20.0))
        stats = server.thread.stats()
    report = result.report()
    assert report["counters_fell"] == []
    assert result.accepted >= 10 and set(result.outcomes) <= {"complete", "left"}
    assert sum(result.outcomes.values()) == result.accepted
    assert report["books_close"]
    assert stats.requests == sum(stats.finished.values()) == result.accepted + before
    assert set(report["pages_in_use_at_end"].values()) == {0.0}


def test_growth_is_the_slope_of_a_line() -> None:
    assert slope([(0, 1), (1, 3), (2, 5)]) == pytest.approx(2)
    assert slope([(5, 7)]) == 0


def test_a_counter_that_falls_is_named() -> None:
    rising = [Sample(t, 0, 0, {"coldpress_steps_total": t, "coldpress_x": -t}) for t in (0, 1, 2)]
    assert falls(rising) == []
    assert falls(rising[::-1]) == ["coldpress_steps_total"]
