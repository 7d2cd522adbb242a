"""The step loop from outside: ends, refusals, roll-back, broken logits."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from runtime.engine.batch import StepBatch
from runtime.engine.engine import Engine
from runtime.engine.options import EngineOptions
from runtime.engine.request import Request, RequestError, SamplingParams
from runtime.engine.runner import ExecutorFailed
from tests.runtime.engine.fake_executor import FakeExecutor, greedy_answer, run_to_end

GREEDY = SamplingParams(temperature=0)


def fail(batch: StepBatch) -> None:
    raise OSError("the device is gone")


def accounting_of(engine: Engine) -> Any:
    """Everything that a rolled back step must leave as it was. It may have written, though."""
    scheduler = engine._scheduler
    return (
        list(scheduler.pool._free),
        list(scheduler.pool._references),
        [
            [(s.request.request_id, s.num_computed_tokens, s.tokens[:], s.pages[:]) for s in queue]
            for queue in (scheduler.running, scheduler.waiting)
        ],
        replace(engine.stats, failed_steps=0, expected_wait_seconds=0.0, pages_written=0),
    )


def test_ending_tokens_stop_and_are_reported() -> None:
    executor = FakeExecutor()
    free = greedy_answer(Request("a", (1, 2), 12, GREEDY), executor)
    request = Request("a", (1, 2), 12, GREEDY, frozenset({free[4], 99}))
    engine = Engine(executor, check=True)
    engine.add(request)
    transcript = run_to_end(engine)
    assert transcript.tokens["a"] == free[: free.index(free[4]) + 1]
    assert transcript.ends["a"].finish_reason == "stop"
    assert transcript.ends["a"].token_id == free[4]


def test_a_stop_on_the_last_allowed_token_is_a_stop() -> None:
    executor = FakeExecutor()
    free = greedy_answer(Request("a", (1, 2), 1, GREEDY), executor)
    engine = Engine(executor, check=True)
    engine.add(Request("a", (1, 2), 1, GREEDY, frozenset(free)))
    assert run_to_end(engine).ends["a"].finish_reason == "stop"


def test_min_tokens_holds_the_end_back_exactly_so_long() -> None:
    executor = FakeExecutor()
    engine = Engine(executor, check=True)
    endings = frozenset(range(0, 23, 2))
    engine.add(Request("a", (1, 2), 40, GREEDY, endings, min_tokens=6))
    transcript = run_to_end(engine)
    assert not endings & set(transcript.tokens["a"][:6])
    assert transcript.ends["a"].finish_reason == "stop"


def test_counters_close_their_books() -> None:
    executor = FakeExecutor()
    engine = Engine(executor, check=True)
    for index in range(4):
        engine.add(Request(str(index), (index,) * (3 + index), 5, GREEDY))
    engine.abort("3")
    run_to_end(engine)
    stats = engine.stats
    assert stats.requests == 4 == sum(stats.finished.values())
    assert (stats.prompt_tokens, stats.generated_tokens) == (3 + 4 + 5, 15)
    # The last token of an answer is known but never computed.
    assert stats.computed_tokens == stats.prompt_tokens + stats.generated_tokens - 3
    assert stats.steps == 5 and stats.pages_total == 63


REFUSED: list[tuple[dict[str, Any], str, str | None, tuple[str, ...]]] = [
    ({"prompt_tokens": ()}, "prompt", "empty_prompt", ()),
    ({"prompt_tokens": (1,) * 30}, "prompt", "context_length_exceeded", ("30 tokens", "30")),
    ({"prompt_tokens": (1,) * 44}, "prompt", "context_length_exceeded", ("44", "30")),
    ({"max_tokens": 29}, "max_tokens", "context_length_exceeded", ("31", "30")),
    ({"max_tokens": 10**9}, "max_tokens", "context_length_exceeded", ("1000000002", "30")),
    ({"max_tokens": 0}, "max_tokens", None, ("0",)),
    ({"min_tokens": 6}, "min_tokens", None, ("5", "6")),
    ({"min_tokens": -1}, "min_tokens", None, ("-1",)),
    ({"prompt_tokens": (1, 23)}, "prompt", "invalid_token", ("23",)),
    ({"prompt_tokens": (-1, 2)}, "prompt", "invalid_token", ("-1", "23")),
    ({"temperature": -0.1}, "temperature", None, ("-0.1",)),
    ({"temperature": float("nan")}, "temperature", None, ("nan",)),
    ({"temperature": float("inf")}, "temperature", None, ("inf",)),
    ({"top_k": -1}, "top_k", None, ("-1",)),
    ({"top_p": 0.0}, "top_p", None, ("0.0",)),
    ({"top_p": 1.01}, "top_p", None, ("1.01",)),
    ({"top_p": float("nan")}, "top_p", None, ("nan",)),
    ({"min_p": 1.5}, "min_p", None, ("1.5",)),
    ({"presence_penalty": float("inf")}, "presence_penalty", None, ("inf",)),
    ({"frequency_penalty": float("nan")}, "frequency_penalty", None, ("nan",)),
    ({"repetition_penalty": 0.0}, "repetition_penalty", None, ("0.0",)),
    ({"logprobs": 24}, "logprobs", None, ("23", "24")),
    ({"logprobs": -1}, "logprobs", None, ("-1",)),
    ({"logit_bias": {23: 1.0}}, "logit_bias", None, ("23",)),
    ({"logit_bias": {1: float("nan")}}, "logit_bias", None, ("1",)),
]


@pytest.mark.parametrize(("change", "param", "code", "words"), REFUSED)
def test_what_cannot_be_honoured_is_refused(
    change: dict[str, Any], param: str, code: str | None, words: tuple[str, ...]
) -> None:
    sampling = {k: v for k, v in change.items() if k in SamplingParams.__dataclass_fields__}
    rest = {k: v for k, v in change.items() if k not in sampling}
    request = replace(
        Request("a", (1, 2), 5, SamplingParams(**sampling)),
        **rest,
    )
    engine = Engine(FakeExecutor(max_positions=30), check=True)
    with pytest.raises(RequestError) as refusal:
        engine.add(request)
    assert (refusal.value.param, refusal.value.code) == (param, code)
    assert all(word in str(refusal.value) for word in words)
    assert not engine.has_work
    engine.check_integrity()


def test_the_longest_request_is_accepted() -> None:
    executor = FakeExecutor(max_positions=30)
    engine = Engine(executor, check=True)
    request = Request("a", (1, 2), 28, GREEDY)
    engine.add(request)
    assert run_to_end(engine).tokens["a"] == greedy_answer(request, executor)


def test_what_can_never_fit_the_pool_is_refused_with_both_numbers() -> None:
    engine = Engine(FakeExecutor(num_pages=4, page_size=4))
    with pytest.raises(RequestError, match=r"13 tokens.* 12 tokens"):
        engine.add(Request("a", (1,) * 8, 5, GREEDY))
    engine.add(Request("a", (1,) * 8, 4, GREEDY))


def test_queue_and_names_are_bounded() -> None:
    engine = Engine(FakeExecutor(), EngineOptions(max_waiting=2), check=True)
    engine.add(Request("a", (1,), 5, GREEDY))
    with pytest.raises(RequestError) as twice:
        engine.add(Request("a", (1,), 5, GREEDY))
    engine.add(Request("b", (1,), 5, GREEDY))
    with pytest.raises(RequestError) as full:
        engine.add(Request("c", (1,), 5, GREEDY))
    assert (twice.value.code, full.value.code) == ("duplicate_request_id", "queue_full")
    run_to_end(engine)
    engine.add(Request("a", (1,), 5, GREEDY))


@pytest.mark.parametrize("steps", range(7))
def test_a_failed_step_leaves_the_accounting_as_it_was(steps: int) -> None:
    """In every phase: admission, chunks, decode, a new page; the cache is written all the same."""
    executor = FakeExecutor(page_size=2)
    engine = Engine(executor, EngineOptions(max_step_tokens=5), check=True)
    requests = [Request(str(i), tuple(range(1 + 4 * i)), 6, GREEDY) for i in range(1, 4)]
    for request in requests:
        engine.add(request)
    events = [event for _ in range(steps) for event in engine.step()]
    before = accounting_of(engine)
    executor.before_step = fail
    for _ in range(2):
        with pytest.raises(ExecutorFailed, match="device is gone") as failure:
            engine.step()
        assert accounting_of(engine) == before
    assert set(failure.value.request_ids) <= {"1", "2", "3"} and failure.value.request_ids
    executor.before_step = lambda batch: None
    while engine.has_work:
        events += engine.step()
    for request in requests:
        text = [e.token_id for e in events if e.request_id == request.request_id]
        assert text == greedy_answer(request, executor)
    assert engine.stats.failed_steps == 2


def test_what_a_failed_step_preempted_is_computed_anew() -> None:
    """The failing step may have written over the pages it took from the victim."""
    executor = FakeExecutor(num_pages=8, page_size=2)
    engine = Engine(executor, check=True)
    requests = [Request(str(i), (i, 2, 3), 9, GREEDY) for i in range(2)]
    for request in requests:
        engine.add(request)
    events = []
    while engine.stats.preemptions == 0:
        executor.before_step = lambda batch: None
        snapshot = accounting_of(engine)
        if len(executor.batches) > 1:
            executor.before_step = fail
            with pytest.raises(ExecutorFailed):
                engine.step()
            if engine.stats.preemptions:
                break
            assert accounting_of(engine) == snapshot
            executor.before_step = lambda batch: None
        events += engine.step()
    executor.before_step = lambda batch: None
    assert engine._scheduler.waiting[0].num_computed_tokens == 0
    while engine.has_work:
        events += engine.step()
    for request in requests:
        text = [e.token_id for e in events if e.request_id == request.request_id]
        assert text == greedy_answer(request, executor)


def test_an_interrupt_rolls_back_and_passes_through() -> None:
    executor = FakeExecutor()
    engine = Engine(executor, check=True)
    engine.add(Request("a", (1, 2), 5, GREEDY))
    before = accounting_of(engine)

    def interrupt(batch: StepBatch) -> None:
        raise KeyboardInterrupt

    executor.before_step = interrupt
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    assert accounting_of(engine) == before


class Broken(FakeExecutor):
    """Spoils the logits at positions from 6 on."""

    spoil: Callable[[np.ndarray[Any, Any]], Any]

    def step(self, batch: StepBatch) -> np.ndarray[Any, np.dtype[np.float32]]:
        logits = super().step(batch)
        for row, token in enumerate(batch.logit_rows):
            if batch.positions[token] >= 6:
                self.spoil(logits[row])
        return logits


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_logits_end_one_request_and_no_other(value: float, temperature: float) -> None:
    executor = Broken()
    executor.spoil = lambda row: row.fill(value)
    engine = Engine(executor, check=True)
    sound = Request("sound", (1, 2), 5, GREEDY)
    engine.add(sound)
    engine.add(Request("broken", (1, 2, 3, 4), 9, SamplingParams(temperature=temperature)))
    transcript = run_to_end(engine)
    assert transcript.tokens["sound"] == greedy_answer(sound, executor)
    end = transcript.ends["broken"]
    assert (end.finish_reason, end.token_id) == ("error", None)
    assert end.error is not None and len(transcript.tokens["broken"]) == 3
    assert engine.stats.finished["error"] == 1 == engine.stats.corrupted_requests
    assert engine.pages_in_use == 0


@pytest.mark.parametrize("params", [GREEDY, SamplingParams(seed=1), SamplingParams(top_p=0.5)])
def test_a_bias_that_bans_every_token_ends_one_request(params: SamplingParams) -> None:
    """A7: a defined end that is counted, and no stream of token 0."""
    executor = FakeExecutor()
    engine = Engine(executor, check=True)
    sound = Request("sound", (1, 2), 5, GREEDY)
    banned = replace(params, logit_bias=dict.fromkeys(range(23), -3.5e38))
    engine.add(sound)
    engine.add(Request("banned", (1, 2), 9, banned))
    transcript = run_to_end(engine)
    assert transcript.tokens == {"sound": greedy_answer(sound, executor)}
    assert transcript.ends["banned"].finish_reason == "error"
    assert "no token" in (transcript.ends["banned"].error or "")
    assert (engine.stats.finished["error"], engine.stats.corrupted_requests) == (1, 0)


def test_logits_of_a_wrong_shape_are_the_executors_failure() -> None:
    class Short(FakeExecutor):
        def step(self, batch: StepBatch) -> np.ndarray[Any, np.dtype[np.float32]]:
            return super().step(batch)[:, 1:]

    engine = Engine(Short(), check=True)
    engine.add(Request("a", (1, 2), 5, GREEDY))
    with pytest.raises(ExecutorFailed, match=r"\(1, 22\) instead of \(1, 23\)"):
        engine.step()


def test_reset_forgets_all_and_goes_on() -> None:
    executor = FakeExecutor()
    engine = Engine(executor, check=True)
    for name in "ab":
        engine.add(Request(name, (1, 2), 5, GREEDY))
    engine.step()
    assert set(engine.reset()) == {"a", "b"}
    engine.check_integrity()
    assert not engine.has_work and engine.pages_in_use == 0
    again = Request("a", (1, 2), 5, GREEDY)
    engine.add(again)
    assert run_to_end(engine).tokens["a"] == greedy_answer(again, executor)


def test_an_idle_engine_steps_in_vain() -> None:
    executor = FakeExecutor()
    assert Engine(executor, check=True).step() == [] and not executor.batches
