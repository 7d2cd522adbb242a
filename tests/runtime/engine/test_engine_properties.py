"""Text does not depend on company, chunks, pool, preemption, aborts or failing steps."""

from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engine.batch import StepBatch
from runtime.engine.engine import Engine
from runtime.engine.options import EngineOptions
from runtime.engine.request import Request, SamplingParams
from runtime.engine.runner import ExecutorFailed
from tests.runtime.engine.fake_executor import FakeExecutor, Transcript, greedy_answer, run_to_end

PARAMS = st.sampled_from(
    [
        SamplingParams(temperature=0),
        SamplingParams(seed=11),
        SamplingParams(temperature=0.7, top_p=0.8, seed=12),
        SamplingParams(temperature=0, repetition_penalty=1.4, logprobs=2),
        SamplingParams(top_k=5, frequency_penalty=0.5, presence_penalty=0.5, seed=13),
    ]
)


MODES = st.fixed_dictionaries(
    {
        "prefix_cache": st.sampled_from([True, True, False]),
        "reserve_answers": st.sampled_from([False, False, True]),
        "queue_order": st.sampled_from(["arrival", "prefix"]),
        "prompt_lookup": st.booleans(),
        "max_extra_logit_rows": st.integers(1, 9),
    }
)


@dataclass(frozen=True)
class Arrival:
    step: int
    request: Request
    abort_after: int | None


@st.composite
def arrivals(draw: st.DrawFn) -> list[Arrival]:
    result = []
    for index in range(draw(st.integers(1, 7))):
        common = tuple(range(12))[: draw(st.sampled_from([0, 4, 9, 12]))]
        own = tuple(draw(st.lists(st.integers(0, 12), min_size=1, max_size=18 - len(common))))
        request = Request(
            f"r{index}",
            common + own,
            draw(st.integers(1, 12)),
            draw(PARAMS),
            draw(st.sampled_from([frozenset(), frozenset({3, 9})])),
            min_tokens=draw(st.integers(0, 1)),
            priority=draw(st.sampled_from([0, 0, 0, -1, 5])),
            cache_salt=draw(st.sampled_from(["", "", "", "other"])),
        )
        abort_after = draw(st.none() | st.none() | st.integers(0, 25))
        result.append(Arrival(draw(st.integers(0, 15)), request, abort_after))
    return result


def alone(request: Request, page_size: int) -> list[int]:
    executor = FakeExecutor(vocab_size=13, page_size=page_size)
    engine = Engine(executor)
    engine.add(request)
    tokens = run_to_end(engine).tokens[request.request_id]
    if request.sampling == SamplingParams(temperature=0) and request.min_tokens == 0:
        assert tokens == greedy_answer(request, executor)
    return tokens


@settings(max_examples=80, deadline=None)
@given(
    plan=arrivals(),
    page_size=st.integers(1, 5),
    spare_pages=st.integers(0, 12),
    max_step_tokens=st.integers(1, 40),
    max_running=st.integers(1, 6),
    failing_steps=st.sets(st.integers(0, 40), max_size=4),
    modes=MODES,
)
def test_text_is_the_same_as_alone(
    plan: list[Arrival],
    page_size: int,
    spare_pages: int,
    max_step_tokens: int,
    max_running: int,
    failing_steps: set[int],
    modes: dict[str, Any],
) -> None:
    longest = max(len(a.request.prompt_tokens) + a.request.max_tokens for a in plan)
    num_pages = 1 + -(-longest // page_size) + spare_pages
    executor = FakeExecutor(vocab_size=13, page_size=page_size, num_pages=num_pages)
    engine = Engine(
        executor,
        EngineOptions(max_step_tokens=max_step_tokens, max_running=max_running, **modes),
        clock=lambda: 0.0,
        check=True,
    )
    transcript = Transcript()
    # The oldest request gains at least a token in each step that runs.
    tokens = sum(len(a.request.prompt_tokens) + a.request.max_tokens for a in plan)
    for step in range(16 + tokens + len(failing_steps)):
        for arrival in plan:
            if arrival.step == step:
                engine.add(arrival.request)
            if arrival.abort_after is not None and arrival.step + arrival.abort_after == step:
                event = engine.abort(arrival.request.request_id)
                transcript.note([event] if event else [])
        executor.before_step = _fail if step in failing_steps else _pass
        try:
            transcript.note(engine.step())
        except ExecutorFailed:
            assert step in failing_steps
    assert not engine.has_work, "livelock"
    assert engine.pages_in_use == 0
    engine.check_integrity()
    for arrival in plan:
        name = arrival.request.request_id
        expected = alone(arrival.request, page_size)
        text = transcript.tokens.get(name, [])
        if transcript.ends[name].finish_reason == "abort":
            assert text == expected[: len(text)] and len(text) < len(expected)
        else:
            assert text == expected


def _fail(batch: StepBatch) -> None:
    raise RuntimeError("once")


def _pass(batch: StepBatch) -> None:
    pass
