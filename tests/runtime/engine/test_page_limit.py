"""A12: with less memory than was planned, pages go out of use while requests run, and come back."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engine.engine import Engine
from runtime.engine.options import EngineOptions
from runtime.engine.pages import PagePool
from runtime.engine.request import Request, SamplingParams
from tests.runtime.engine.fake_executor import (
    FakeExecutor,
    Transcript,
    greedy_answer,
    mix,
    run_to_end,
)

LEAST = 10
"""Pages that the longest request here needs."""


class GivingExecutor(FakeExecutor):
    """What a page held that was given back is gone."""

    def __init__(self, num_pages: int = 41) -> None:
        super().__init__(num_pages=num_pages)
        self.given: list[int] = []

    def give_back(self, pages: Sequence[int]) -> None:
        self.given += pages
        for page in pages:
            self._cache[page] = [mix(slot - page) for slot in range(self.page_size)]


def requests(count: int = 12) -> list[Request]:
    """Half of them begin alike."""
    greedy = SamplingParams(temperature=0)
    made = []
    for index in range(count):
        first = 1 if index % 2 else index
        prompt = tuple((first + i) % 23 for i in range(9 + index))
        made.append(Request(str(index), prompt, 40 - len(prompt) - index % 3, greedy))
    return made


def assert_text(transcript: Transcript, executor: FakeExecutor, asked: list[Request]) -> None:
    for request in asked:
        assert transcript.tokens[request.request_id] == greedy_answer(request, executor)


@given(
    limits=st.dictionaries(st.integers(0, 60), st.integers(LEAST, 40), max_size=6),
    prefix_cache=st.booleans(),
)
def test_answers_are_the_same_whatever_memory_does(
    limits: dict[int, int], prefix_cache: bool
) -> None:
    executor, asked = GivingExecutor(), requests(6)
    options = EngineOptions(max_step_tokens=16, prefix_cache=prefix_cache, prompt_lookup=True)
    engine = Engine(executor, options, check=True)
    for request in asked:
        engine.add(request)
    transcript, step, most = Transcript(), 0, 40
    while engine.has_work:
        if step in limits:
            most = limits[step]
            engine.limit_pages(most)
        transcript.note(engine.step())
        assert engine.stats.pages_total <= most
        step += 1
        assert step < 500, "a livelock"
    assert_text(transcript, executor, asked)


def test_what_nobody_uses_goes_first_and_then_the_last_running() -> None:
    executor, asked = GivingExecutor(), requests()
    engine = Engine(executor, EngineOptions(max_step_tokens=64), check=True)
    for request in asked:
        engine.add(request)
    transcript = Transcript()
    while engine.num_running < 8:
        transcript.note(engine.step())
    used = engine.stats.pages_in_use
    engine.limit_pages(used)
    assert engine.stats.pages_total == used and len(executor.given) == 40 - used
    assert engine.stats.preemptions == 0
    engine.limit_pages(LEAST)
    transcript.note(engine.step())
    assert engine.stats.pages_total == LEAST and engine.stats.preemptions > 0
    assert engine._scheduler.running[0].request.request_id == "0"
    for _ in range(500):
        transcript.note(engine.step() if engine.has_work else [])
    assert_text(transcript, executor, asked)
    assert engine.stats.pages_written <= LEAST


def test_what_is_kept_for_later_prompts_goes_at_once_where_nothing_runs() -> None:
    executor = GivingExecutor()
    engine = Engine(executor, check=True)
    engine.add(requests()[0])
    run_to_end(engine)
    kept = engine.stats.pages_evictable
    assert kept > 2
    engine.limit_pages(2)
    stats = engine.stats
    assert (stats.pages_total, stats.pages_evictable, stats.pages_written) == (2, 2, 2)
    engine.limit_pages(40)
    assert engine.stats.pages_total == 40 and engine.stats.pages_written == 2
    before = engine.stats.prefix_cache_hits
    engine.add(requests()[0])
    assert_text(run_to_end(engine), executor, requests()[:1])
    assert engine.stats.prefix_cache_hits > before


def test_a_limit_leaves_every_live_request_its_pages() -> None:
    executor = GivingExecutor()
    engine = Engine(executor, check=True)
    (request,) = requests(1)
    engine.add(request)
    engine.limit_pages(0)
    assert engine.stats.pages_total == LEAST
    assert_text(run_to_end(engine), executor, [request])


def test_reserved_answers_are_never_preempted_for_memory() -> None:
    executor, asked = GivingExecutor(), requests()
    engine = Engine(executor, EngineOptions(reserve_answers=True, prefix_cache=False), check=True)
    for request in asked:
        engine.add(request)
    transcript = Transcript()
    transcript.note(engine.step())
    running = engine.num_running
    engine.limit_pages(LEAST)
    assert running > 1 and engine.num_running == running
    for _ in range(500):
        transcript.note(engine.step() if engine.has_work else [])
    assert_text(transcript, executor, asked)
    assert engine.stats.preemptions == 0 and engine.stats.pages_total == LEAST


def test_a_limit_outlives_a_reset() -> None:
    executor = GivingExecutor()
    engine = Engine(executor, check=True)
    engine.limit_pages(LEAST)
    engine.add(requests()[0])
    engine.step()
    executor.given.clear()
    engine.reset()
    assert engine.stats.pages_total == LEAST and engine.stats.pages_written == 0
    assert set(executor.given) == set(range(1, 41)), "what the old pool had written is given back"


def test_an_executor_that_gives_nothing_back_keeps_its_pages() -> None:
    engine = Engine(FakeExecutor(), check=True)
    engine.limit_pages(1)
    assert engine.stats.pages_total == 63


@pytest.mark.parametrize("most", [0, 3, 5, 7])
def test_a_pool_with_a_limit(most: int) -> None:
    pool = PagePool(8, 4)
    owned = pool.allocate(5)
    pool.limit(most)
    out = pool.retire()
    assert len(out) == min(2, 7 - most) and pool.num_owed == max(0, 5 - most)
    pool.check_integrity([owned])
    pool.free(owned)
    out += pool.retire()
    assert pool.num_owed == 0 and pool.capacity == pool.num_available == most
    assert len(set(out)) == 7 - most and pool.num_written == max(0, 5 - len({*out} & {*owned}))
    pool.check_integrity([])
    pool.limit(7)
    assert pool.capacity == 7 and sorted(pool.allocate(7)) == list(range(1, 8))
