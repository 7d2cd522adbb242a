"""What is found computed is what was computed, by whom it may be found, and what goes first."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engine.batch import StepBatch
from runtime.engine.engine import Engine
from runtime.engine.options import EngineOptions
from runtime.engine.request import Request, SamplingParams, TokenEvent
from tests.runtime.engine.fake_executor import FakeExecutor, greedy_answer, run_to_end

PAGE = 4
GREEDY = SamplingParams(temperature=0)
Prefix = tuple[str, tuple[int, ...]]


def asking(name: str, prompt: range | tuple[int, ...], max_tokens: int = 3) -> Request:
    return Request(name, tuple(token % 23 for token in prompt), max_tokens, GREEDY)


def cached_tokens(engine: Engine, executor: FakeExecutor, request: Request) -> int:
    """Runs the request alone, to its end."""
    engine.add(request)
    transcript = run_to_end(engine)
    assert transcript.tokens[request.request_id] == greedy_answer(request, executor)
    return transcript.ends[request.request_id].num_cached_tokens


def kept_prefixes(engine: Engine) -> list[Prefix]:
    """What nobody owns but is kept, the first to go first."""
    cache = engine._scheduler.cache
    assert cache is not None
    page_of_serial = {serial: page for page, serial in cache._serial_of.items()}

    def prefix(page: int) -> Prefix:
        chain, packed = cache._key_of[page]
        tokens = tuple(memoryview(packed).cast("i"))
        if isinstance(chain, str):
            return chain, tokens
        salt, before = prefix(page_of_serial[chain])
        return salt, before + tokens

    return [prefix(page) for page in engine._scheduler.pool._evictable]


class SlowCache:
    """The same for one request at a time, as a list of whole prefixes in the order of leaving."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.idle: list[Prefix] = []
        self.used = 0

    def serve(self, request: Request, answer: list[int]) -> int:
        """Cached tokens of a request with this answer."""
        tokens = (*request.prompt_tokens, *answer[:-1])
        prefixes = [
            (request.cache_salt, tokens[:end]) for end in range(PAGE, len(tokens) + 1, PAGE)
        ]
        hits = 0
        while hits < (len(request.prompt_tokens) - 1) // PAGE and prefixes[hits] in self.idle:
            self.idle.remove(prefixes[hits])
            hits += 1
        self.used = hits
        for known in range(len(request.prompt_tokens), len(tokens) + 1):
            while self.used < -(-known // PAGE):
                if self.used + len(self.idle) == self.capacity:
                    self.idle.pop(0)
                self.used += 1
            for prefix in prefixes[hits : known // PAGE]:
                if prefix in self.idle:
                    self.idle.remove(prefix)
        self.idle += reversed(prefixes)
        return hits * PAGE


@st.composite
def streams(draw: st.DrawFn) -> list[Request]:
    """Few tokens and fewer beginnings, so that prefixes meet."""
    made: list[Request] = []
    for index in range(draw(st.integers(1, 8))):
        start = draw(st.sampled_from([(), (1,) * 4, (1,) * 9, (1, 2) * 6, (2,) * 5]))
        tail = tuple(draw(st.lists(st.integers(0, 2), min_size=1, max_size=6)))
        salt = draw(st.sampled_from(["", "", "x"]))
        request = Request(
            str(index), start + tail, draw(st.integers(1, 9)), GREEDY, cache_salt=salt
        )
        if draw(st.booleans()) and made:
            again = draw(st.sampled_from(made))
            request = replace(request, prompt_tokens=again.prompt_tokens)
        made.append(request)
    return made


@settings(max_examples=80, deadline=None)
@given(requests=streams(), spare_pages=st.integers(0, 12), step_tokens=st.sampled_from([3, 50]))
def test_against_a_list_of_prefixes(
    requests: list[Request], spare_pages: int, step_tokens: int
) -> None:
    longest = max(len(request.prompt_tokens) + request.max_tokens for request in requests)
    executor = FakeExecutor(vocab_size=3, num_pages=2 + longest // PAGE + spare_pages)
    engine = Engine(executor, EngineOptions(max_step_tokens=step_tokens), check=True)
    slow = SlowCache(executor.num_pages - 1)
    hits = 0
    for request in requests:
        expected = slow.serve(request, greedy_answer(request, executor))
        assert cached_tokens(engine, executor, request) == expected
        assert kept_prefixes(engine) == slow.idle
        hits += expected
    stats = engine.stats
    assert stats.prefix_cache_hits == hits
    assert stats.prefix_cache_queries == stats.prompt_tokens
    assert (stats.pages_in_use, stats.pages_evictable) == (0, len(slow.idle))


@pytest.mark.parametrize("extra", [-1, 0, 1])
def test_the_last_token_is_always_computed(extra: int) -> None:
    executor = FakeExecutor()
    engine = Engine(executor, check=True)
    request = asking("a", range(3 * PAGE + extra))
    assert cached_tokens(engine, executor, request) == 0
    expected = PAGE * ((3 * PAGE + extra - 1) // PAGE)
    assert cached_tokens(engine, executor, request) == expected


def test_an_answer_is_found_by_the_next_turn_of_its_conversation() -> None:
    executor = FakeExecutor()
    engine = Engine(executor, check=True)
    first = asking("a", range(10), 9)
    cached_tokens(engine, executor, first)
    # All but the last token of the answer were computed: 18 of them, in 4 full pages.
    turn = asking("b", (*range(10), *greedy_answer(first, executor), 5, 6))
    assert cached_tokens(engine, executor, turn) == 16


def test_equal_prompts_at_once_are_computed_once() -> None:
    """Later ones wait a step for the first, and then need a page each."""
    executor = FakeExecutor()
    engine = Engine(executor, check=True)
    for index in range(8):
        engine.add(asking(str(index), (*range(12), index), 1))
    transcript = run_to_end(engine)
    assert engine.stats.computed_tokens == 13 + 7 and engine.stats.steps == 2
    assert [transcript.ends[str(i)].num_cached_tokens for i in range(8)] == [0] + [12] * 7
    assert engine.stats.prefix_cache_hits == 7 * 12


def test_a_shared_beginning_is_computed_once_over_many_chunks() -> None:
    """Counted in tokens: 32 requests, one system prompt."""
    executor = FakeExecutor(num_pages=200, max_positions=300)
    engine = Engine(executor, EngineOptions(max_step_tokens=16), check=True)
    requests = [asking(str(i), (*range(100), i, i), 2) for i in range(32)]
    for request in requests:
        engine.add(request)
    transcript = run_to_end(engine)
    for request in requests:
        assert transcript.tokens[request.request_id] == greedy_answer(request, executor)
    assert engine.stats.computed_tokens == 100 + 32 * (2 + 1)


def test_a_cancelled_prompt_keeps_what_was_computed() -> None:
    executor = FakeExecutor()
    engine = Engine(executor, EngineOptions(max_step_tokens=10), check=True)
    request = asking("a", range(30))
    engine.add(request)
    engine.step()
    engine.step()
    engine.abort("a")
    assert engine.pages_in_use == 0 and engine.stats.pages_evictable == 5
    assert cached_tokens(engine, executor, request) == 20


def test_what_is_preempted_comes_back_to_its_pages() -> None:
    """And what a request computed itself is no hit of the cache."""
    executor = FakeExecutor(num_pages=12)
    engine = Engine(executor, check=True)
    requests = [asking(str(i), (i,) * 9, 16) for i in range(3)]
    for request in requests:
        engine.add(request)
    transcript = run_to_end(engine)
    assert engine.stats.preemptions > 0 and engine.stats.prefix_cache_hits == 0
    for request in requests:
        assert transcript.tokens[request.request_id] == greedy_answer(request, executor)
    again = Engine(FakeExecutor(num_pages=12), EngineOptions(prefix_cache=False), check=True)
    for request in requests:
        again.add(request)
    run_to_end(again)
    assert engine.stats.computed_tokens < again.stats.computed_tokens


def test_two_salts_share_no_page() -> None:
    """W3."""
    executor = FakeExecutor()
    engine = Engine(executor, check=True)
    prompt = asking("a", range(17))
    pages: list[int] = []
    for salt in ("one", "other", ""):
        executor.batches.clear()
        assert cached_tokens(engine, executor, replace(prompt, cache_salt=salt)) == 0
        pages += executor.batches[-1].page_table[0, : 16 // PAGE].tolist()
    assert len(set(pages)) == len(pages) == 3 * 4
    assert cached_tokens(engine, executor, replace(prompt, cache_salt="one")) == 16


def test_a_scored_prompt_is_computed_and_leaves_its_pages_to_others() -> None:
    executor = FakeExecutor()
    engine = Engine(executor, check=True)
    plain = asking("a", range(14))
    scored = replace(plain, sampling=replace(GREEDY, prompt_logprobs=0))
    assert cached_tokens(engine, executor, plain) == 0
    assert cached_tokens(engine, executor, scored) == 0
    assert cached_tokens(engine, executor, plain) == 12


class Feverish(FakeExecutor):
    """Produces what are no numbers, for prompts that hold token 22, while it is ill."""

    ill = True

    def step(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        logits = super().step(batch)
        for row, token in enumerate(batch.logit_rows):
            sequence = int(np.searchsorted(batch.query_starts, token, side="right")) - 1
            first = batch.query_starts[sequence]
            if self.ill and 22 in batch.token_ids[first : token + 1]:
                logits[row] = np.nan
        return logits


@pytest.mark.parametrize("others", [0, 1])
def test_nobody_begins_with_what_led_to_broken_numbers(others: int) -> None:
    """What a sound request shares with the broken one stays: it is that one's own as well."""
    executor = Feverish()
    engine = Engine(executor, check=True)
    cached_tokens(engine, executor, asking("old", (5,) * 9))
    sound = asking("sound", range(14), 30)
    if others:
        engine.add(sound)
        engine.step()
    broken = asking("broken", (*range(13), 22, 1, 2, 3, 4, 5), 3)
    engine.add(broken)
    while "broken" in engine._sequences:
        engine.step()
    assert engine.stats.corrupted_requests == 1 and engine.stats.pages_evictable == 0
    executor.ill = False
    engine.add(replace(broken, request_id="again"))
    transcript = run_to_end(engine)
    assert transcript.tokens["again"] == greedy_answer(broken, executor)
    assert transcript.ends["again"].num_cached_tokens == others * 12


def test_switched_off_nothing_is_kept() -> None:
    executor = FakeExecutor()
    engine = Engine(executor, EngineOptions(prefix_cache=False), check=True)
    for _ in range(2):
        assert cached_tokens(engine, executor, asking("a", range(14))) == 0
    stats = engine.stats
    assert (stats.pages_evictable, stats.prefix_cache_queries, stats.prefix_cache_hits) == (0, 0, 0)


def test_a_failed_step_does_not_vouch_for_what_it_wrote() -> None:
    executor = FakeExecutor()
    engine = Engine(executor, check=True)

    def fail(batch: object) -> None:
        raise OSError("gone")

    request = asking("a", range(14))
    engine.add(request)
    executor.before_step = fail
    with pytest.raises(RuntimeError):
        engine.step()
    assert engine.stats.pages_evictable == 0
    executor.before_step = lambda batch: None
    events: list[TokenEvent] = engine.step()
    assert events[0].num_cached_tokens == 0
    engine.abort("a")
    assert cached_tokens(engine, executor, request) == 12
