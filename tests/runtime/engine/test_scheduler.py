"""The schedule seen through the batches it makes; cases other runtimes learnt the hard way."""

import pytest

from runtime.engine.engine import Engine
from runtime.engine.options import EngineOptions
from runtime.engine.request import Request, SamplingParams
from tests.runtime.engine.fake_executor import (
    FakeExecutor,
    Transcript,
    greedy_answer,
    run_to_end,
)

PAGE = 4


def greedy(name: str, prompt_length: int, max_tokens: int, first: int = 1) -> Request:
    prompt = tuple((first + i) % 23 for i in range(prompt_length))
    return Request(name, prompt, max_tokens, SamplingParams(temperature=0))


def assert_text(transcript: Transcript, executor: FakeExecutor, *requests: Request) -> None:
    for request in requests:
        assert transcript.tokens[request.request_id] == greedy_answer(request, executor)


@pytest.mark.parametrize("max_step_tokens", [1, 3, PAGE, 5, 256])
@pytest.mark.parametrize("pages", [1, 2, 3])
@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_prompts_around_page_ends(pages: int, extra: int, max_step_tokens: int) -> None:
    executor = FakeExecutor(page_size=PAGE)
    engine = Engine(executor, EngineOptions(max_step_tokens=max_step_tokens), check=True)
    request = greedy("a", pages * PAGE + extra, PAGE + 1)
    engine.add(request)
    assert_text(run_to_end(engine), executor, request)
    assert engine.pages_in_use == 0


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_a_request_that_fills_the_whole_pool(extra: int) -> None:
    executor = FakeExecutor(page_size=PAGE, num_pages=5)
    engine = Engine(executor, check=True)
    request = greedy("a", 2 * PAGE + extra, 2 * PAGE - extra)
    engine.add(request)
    assert_text(run_to_end(engine), executor, request)


def test_a_prompt_takes_no_more_than_the_budget_and_logits_only_at_its_end() -> None:
    executor = FakeExecutor()
    engine = Engine(executor, EngineOptions(max_step_tokens=5), check=True)
    engine.add(greedy("a", 13, 2))
    run_to_end(engine)
    assert [len(batch.token_ids) for batch in executor.batches] == [5, 5, 3, 1]
    assert [batch.logit_rows.tolist() for batch in executor.batches] == [[], [], [2], [0]]


def test_a_long_prompt_never_stalls_running_answers() -> None:
    executor = FakeExecutor()
    engine = Engine(executor, EngineOptions(max_step_tokens=4), check=True)
    engine.add(greedy("talker", 2, 20))
    engine.step()
    engine.add(greedy("long", 30, 1))
    for _ in range(9):
        assert [event.request_id for event in engine.step()] == ["talker"]
    assert {event.request_id for event in engine.step()} == {"talker", "long"}


def test_two_equal_prompts_in_one_step_share_nothing_without_a_cache_and_agree() -> None:
    executor = FakeExecutor()
    engine = Engine(executor, EngineOptions(prefix_cache=False), check=True)
    twins = [greedy("a", 9, 5), greedy("b", 9, 5)]
    for request in twins:
        engine.add(request)
    assert_text(run_to_end(engine), executor, *twins)
    assert len(executor.batches[0].page_table) == 2


def test_first_come_first_served_and_no_overtaking() -> None:
    """A small request behind one that does not fit yet waits for it."""
    executor = FakeExecutor(num_pages=9)
    engine = Engine(executor, check=True)
    for request in (greedy("big", 16, 12), greedy("bigger", 17, 2, 9), greedy("small", 1, 1)):
        engine.add(request)
    ends = list(run_to_end(engine).ends)
    assert ends.index("big") < ends.index("small")


def test_the_last_running_is_preempted_and_returns_first() -> None:
    executor = FakeExecutor(num_pages=10)
    engine = Engine(executor, check=True)
    requests = [greedy("a", 8, 20), greedy("b", 8, 20), greedy("c", 4, 20)]
    for request in requests:
        engine.add(request)
    transcript = Transcript()
    while engine.stats.preemptions == 0:
        running = engine.num_running
        steps = engine.stats.computed_tokens
        transcript.note(engine.step())
        assert engine.stats.computed_tokens > steps
    names = [s.request.request_id for s in engine._scheduler.running]
    waiting = [s.request.request_id for s in engine._scheduler.waiting]
    assert names + waiting == ["a", "b", "c"] and len(names) < running
    assert engine._scheduler.waiting[0].num_computed_tokens == 0
    transcript.note([e for _ in range(500) if engine.has_work for e in engine.step()])
    assert_text(transcript, executor, *requests)


def test_a_step_that_preempts_admits_nobody() -> None:
    executor = FakeExecutor(num_pages=9)
    engine = Engine(executor, EngineOptions(max_running=4), check=True)
    for index in range(6):
        engine.add(greedy(str(index), 5, 12, first=index))
    while engine.has_work:
        before, stats = list(engine._scheduler.running), engine.stats
        ended = sum(event.finish_reason is not None for event in engine.step())
        victims = engine.stats.preemptions - stats.preemptions
        if victims:
            assert set(engine._scheduler.running) <= set(before[:-victims])
            assert engine.num_running + ended == len(before) - victims
    assert engine.stats.preemptions > 0


def test_a_pool_a_fifth_larger_than_one_request_serves_eight() -> None:
    """A10. Only a sequence whose answer reaches a new page can cause a preemption, and each of its
    pages does so once: it then has the page, or is itself a victim. The oldest is never one."""
    executor = FakeExecutor(page_size=PAGE, num_pages=1 + 12)
    engine = Engine(executor, EngineOptions(max_running=8), check=True)
    requests = [greedy(str(i), 17 + i % 3, 20, first=i) for i in range(8)]
    for request in requests:
        engine.add(request)
    transcript, preempting_steps = Transcript(), 0
    while engine.has_work:
        before = engine.stats
        transcript.note(engine.step())
        victims = engine.stats.preemptions - before.preemptions
        assert victims <= max(0, before.num_running - 1)
        preempting_steps += victims > 0
        assert engine.stats.steps <= sum(request.max_tokens + 2 for request in requests)
    assert_text(transcript, executor, *requests)
    assert 0 < preempting_steps <= sum(request.max_tokens // PAGE for request in requests)


def test_running_and_waiting_limits() -> None:
    executor = FakeExecutor()
    engine = Engine(executor, EngineOptions(max_running=3), check=True)
    for index in range(8):
        engine.add(greedy(str(index), 3, 6))
    engine.step()
    assert (engine.num_running, engine.num_waiting) == (3, 5)
    run_to_end(engine)
    assert max(len(batch.page_table) for batch in executor.batches) == 3


@pytest.mark.parametrize("steps", range(8))
def test_abort_at_any_moment_of_prefill_and_decode(steps: int) -> None:
    executor = FakeExecutor()
    engine = Engine(executor, EngineOptions(max_step_tokens=4), check=True)
    other = greedy("other", 5, 6)
    engine.add(other)
    engine.add(greedy("gone", 11, 9))
    transcript = Transcript()
    for _ in range(steps):
        transcript.note(engine.step())
    event = engine.abort("gone")
    assert event is not None and event.finish_reason == "abort"
    engine.check_integrity()
    transcript.note([event])
    assert engine.abort("gone") is None, "an abort frees once"
    transcript.note([e for _ in range(99) if engine.has_work for e in engine.step()])
    assert_text(transcript, executor, other)
    assert engine.pages_in_use == 0


def test_finish_and_abort_in_the_same_step_free_once() -> None:
    engine = Engine(FakeExecutor(), check=True)
    engine.add(greedy("a", 3, 1))
    (event,) = engine.step()
    assert event.finish_reason == "length"
    assert engine.abort("a") is None
    engine.check_integrity()
    assert engine.stats.finished == {"stop": 0, "length": 1, "abort": 0, "error": 0, "timeout": 0}


def test_ten_thousand_disconnects_leak_nothing() -> None:
    """A8."""
    executor = FakeExecutor(vocab_size=3, num_pages=12)
    engine = Engine(executor, EngineOptions(max_step_tokens=2))
    for cycle in range(10_000):
        engine.add(Request(str(cycle), (1, 2, 0), 5, SamplingParams(temperature=0)))
        if cycle % 8 == 7:
            engine.step()
            for name in range(cycle - 7, cycle + 1):
                engine.abort(str(name))
        if cycle % 100 == 0:
            executor.batches.clear()
    assert not engine.has_work and engine.pages_in_use == 0
    engine.check_integrity()
