"""Requests end when their time is over, and those who are refused are told when to come back."""

import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from runtime.engine.batch import StepBatch
from runtime.engine.engine import Engine
from runtime.engine.options import EngineOptions
from runtime.engine.request import Request, RequestError, SamplingParams
from runtime.engine.runner import ExecutorFailed
from tests.runtime.engine.fake_executor import FakeExecutor, greedy_answer, run_to_end

GREEDY = SamplingParams(temperature=0)


class Timed:
    """An engine whose steps take a second each."""

    def __init__(self, **options: Any) -> None:
        self.now = 0.0
        self.executor = FakeExecutor()
        self.executor.before_step = self.pass_second
        self.engine = Engine(
            self.executor, EngineOptions(**options), clock=lambda: self.now, check=True
        )

    def pass_second(self, batch: StepBatch) -> None:
        self.now += 1


def asking(name: str, max_tokens: int = 3, **limits: float) -> Request:
    request = Request(name, (len(name), 1, 2), max_tokens, GREEDY)
    return replace(request, **limits)  # type: ignore[arg-type]


def test_one_that_waits_too_long_is_never_computed() -> None:
    timed = Timed(max_running=1)
    first = asking("first", 6, queue_seconds=2.0)
    timed.engine.add(first)
    timed.engine.add(asking("impatient", queue_seconds=2.0))
    timed.engine.add(asking("patient", queue_seconds=20.0))
    transcript = run_to_end(timed.engine)
    assert transcript.tokens["first"] == greedy_answer(first, timed.executor)
    end = transcript.ends["impatient"]
    assert (end.finish_reason, end.token_id) == ("timeout", None)
    assert end.error == "The request has taken longer than allowed in the queue."
    assert transcript.ends["patient"].finish_reason == "length"
    assert timed.engine.stats.finished["timeout"] == 1
    # Three prompts' tokens and eight answers' but for the last ones; nothing of the impatient.
    assert timed.engine.stats.computed_tokens == (3 + 5) + (3 + 2)


def test_a_deadline_ends_an_answer_where_it_is() -> None:
    timed = Timed()
    timed.engine.add(asking("long", 50, deadline_seconds=4.5))
    transcript = run_to_end(timed.engine)
    assert len(transcript.tokens["long"]) == 5
    assert transcript.ends["long"].finish_reason == "timeout"
    assert timed.engine.pages_in_use == 0


def test_the_engine_sets_what_a_request_does_not_or_may_not() -> None:
    timed = Timed(deadline_seconds=3.0)
    timed.engine.add(asking("a", 50))
    timed.engine.add(asking("bb", 50, deadline_seconds=8.0))
    timed.engine.add(asking("ccc", 50, deadline_seconds=2.0))
    transcript = run_to_end(timed.engine)
    assert [len(transcript.tokens[name]) for name in ("a", "bb", "ccc")] == [3, 3, 2]


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["queue_seconds", "deadline_seconds"])
def test_times_that_mean_nothing_are_refused(name: str, limit: float) -> None:
    with pytest.raises(RequestError, match=name):
        Timed().engine.add(replace(asking("a"), **{name: limit}))  # type: ignore[arg-type]


def test_an_end_is_told_even_if_the_step_after_it_fails() -> None:
    timed = Timed(max_running=1)
    timed.engine.add(asking("runs", 9))
    timed.engine.add(asking("waits", queue_seconds=0.5))
    timed.engine.step()

    def fail(batch: StepBatch) -> None:
        raise OSError("gone")

    timed.executor.before_step = fail
    with pytest.raises(ExecutorFailed):
        timed.engine.step()
    timed.engine.abort("runs")
    assert timed.engine.has_work
    (event,) = timed.engine.step()
    assert (event.request_id, event.finish_reason) == ("waits", "timeout")
    assert not timed.engine.has_work


def test_ended_requests_are_let_go_long_before_their_time() -> None:
    """A server's limits are minutes; what it has answered meanwhile may not stay in memory."""
    timed = Timed(queue_seconds=1e6, deadline_seconds=1e6)
    ended: list[weakref.ref[Request]] = []
    for index in range(600):
        request = asking(str(index), 1)
        ended.append(weakref.ref(request))
        timed.engine.add(request)
        timed.engine.step()
    del request
    assert sum(reference() is not None for reference in ended) <= 40


def test_a_reset_ends_every_time() -> None:
    timed = Timed(deadline_seconds=2.0)
    timed.engine.add(asking("lost", 9))
    timed.engine.reset()
    timed.now = 10.0
    assert timed.engine.step() == [] and not timed.engine.has_work


def refusal(engine: Engine) -> RequestError:
    with pytest.raises(RequestError) as refused:
        engine.add(asking("one too many"))
    assert refused.value.code == "queue_full"
    return refused.value


def test_those_who_are_refused_are_told_how_long_the_queue_is() -> None:
    """Two run at a time, for 4 seconds each, so one starts every 2 seconds."""
    timed = Timed(max_running=2, max_waiting=6)
    assert timed.engine.expected_wait(0) == 0.0
    for index in range(2 + 6 + 10):
        while timed.engine.num_waiting >= 6 or (index == 2 and timed.engine.num_running < 2):
            timed.engine.step()
        timed.engine.add(asking(str(index), 4))
    wait = refusal(timed.engine).retry_after_seconds
    assert wait is not None
    # The seventh in line, of whom two start every 4 seconds.
    assert wait == pytest.approx(7 * 4 / 2)
    assert timed.engine.stats.expected_wait_seconds == pytest.approx(wait)


def test_before_anyone_has_ended_the_wait_is_a_guess_from_those_who_run() -> None:
    timed = Timed(max_running=1, max_waiting=2)
    timed.engine.add(asking("a", 50))
    for _ in range(5):
        timed.engine.step()
    timed.engine.add(asking("b", 1))
    timed.engine.add(asking("c", 1))
    assert refusal(timed.engine).retry_after_seconds == pytest.approx(3 * 2 * 5)


def test_a_clock_that_jumps_ends_nothing_early_and_breaks_nothing() -> None:
    """W5: the engine asks for differences only."""
    jumps: list[Callable[[float], float]] = [lambda now: now - 3600, lambda now: now + 1]
    timed = Timed()
    timed.engine.add(asking("a", 8, deadline_seconds=1000.0))
    for index in range(8):
        timed.engine.step()
        timed.now = jumps[index % 2](timed.now)
    run_to_end(timed.engine)
    assert timed.engine.stats.finished["length"] == 1
