"""Guesses change how many steps an answer takes, and nothing else."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engine.batch import StepBatch
from runtime.engine.engine import Engine
from runtime.engine.options import EngineOptions
from runtime.engine.request import Request, SamplingParams
from runtime.engine.runner import ExecutorFailed
from tests.runtime.engine.fake_executor import FakeExecutor, Transcript, mix, run_to_end
from tests.runtime.engine.test_constraint import Slots
from tests.runtime.engine.test_engine_properties import PARAMS

GREEDY = SamplingParams(temperature=0)
LOOKUP = EngineOptions(prompt_lookup=True)
Logits = npt.NDArray[np.float32]


def no_time() -> float:
    return 0.0


class Looping(FakeExecutor):
    """Says what it said three tokens ago, most of the time; still reads every page, so that a wrong
    one is seen."""

    def step(self, batch: StepBatch) -> Logits:
        logits = super().step(batch)
        for row, token in enumerate(batch.logit_rows):
            position = int(batch.positions[token])
            likely = mix(position % 3) % self.vocab_size
            if mix(position) % 40:
                logits[row, likely] += 9
        return logits


def texts(engine: Engine, requests: list[Request]) -> Transcript:
    for request in requests:
        engine.add(request)
    return run_to_end(engine)


def test_text_that_repeats_takes_fewer_steps() -> None:
    request = Request("a", (1, 2, 3, 4, 1, 2), 60, GREEDY)
    plain = Engine(Looping(), check=True)
    guessing = Engine(Looping(), LOOKUP, clock=no_time, check=True)
    assert texts(plain, [request]).tokens == texts(guessing, [request]).tokens
    stats = guessing.stats
    assert stats.steps < 0.6 * plain.stats.steps
    assert 0 < stats.accepted_draft_tokens <= stats.draft_tokens
    assert stats.steps + stats.accepted_draft_tokens == stats.generated_tokens == 60


def test_a_model_that_agrees_is_always_believed() -> None:
    request = Request("a", (1, 2, 3), 33, GREEDY)
    options = EngineOptions(max_draft_tokens=3)
    plain = texts(Engine(FakeExecutor(), check=True), [request])
    engine = Engine(
        FakeExecutor(), options, clock=no_time, draft_executor=FakeExecutor(), check=True
    )
    assert texts(engine, [request]).tokens == plain.tokens
    stats = engine.stats
    assert stats.accepted_draft_tokens == stats.draft_tokens
    # The prompt's step gives one token, and each further one four.
    assert stats.steps == 1 + 32 // 4


class Refusing(FakeExecutor):
    def step(self, batch: StepBatch) -> Logits:
        raise OSError("the small model is gone")


class Contrary(FakeExecutor):
    """Guesses what its twin finds least likely."""

    def step(self, batch: StepBatch) -> Logits:
        return -super().step(batch)


def test_a_draft_model_that_fails_is_done_without(caplog: pytest.LogCaptureFixture) -> None:
    request = Request("a", (1, 2, 3), 20, GREEDY)
    plain = texts(Engine(FakeExecutor()), [request])
    engine = Engine(FakeExecutor(), clock=no_time, draft_executor=Refusing(), check=True)
    assert texts(engine, [request]).tokens == plain.tokens
    assert "goes on without" in caplog.text or "go on without" in caplog.text


@st.composite
def asked(draw: st.DrawFn) -> list[Request]:
    requests = []
    for index in range(draw(st.integers(1, 5))):
        prompt = draw(st.lists(st.integers(0, 12), min_size=1, max_size=9))
        params = draw(PARAMS)
        if draw(st.integers(0, 3)) == 0:
            params = replace(params, logit_bias={2: 4.0, 5: -100.0}, logprobs=1)
        requests.append(
            Request(
                f"r{index}",
                tuple(prompt * draw(st.sampled_from([1, 2]))),
                draw(st.integers(1, 30)),
                params,
                draw(st.sampled_from([frozenset(), frozenset({3, 9})])),
                min_tokens=draw(st.integers(0, 1)),
            )
        )
    return requests


DRAFTS: list[Callable[..., FakeExecutor] | None] = [None, FakeExecutor, Looping, Contrary, Refusing]


@settings(max_examples=60, deadline=None)
@given(
    requests=asked(),
    target=st.sampled_from([FakeExecutor, Looping]),
    draft=st.sampled_from(DRAFTS),
    lookup=st.booleans(),
    spare_pages=st.integers(0, 12),
    draft_pages=st.integers(2, 30),
    step_tokens=st.integers(1, 40),
    most=st.integers(1, 9),
    reserve=st.booleans(),
    failing_steps=st.sets(st.integers(0, 40), max_size=3),
)
def test_text_logprobs_and_ends_are_the_same_with_and_without(
    requests: list[Request],
    target: Callable[..., FakeExecutor],
    draft: Callable[..., FakeExecutor] | None,
    lookup: bool,
    spare_pages: int,
    draft_pages: int,
    step_tokens: int,
    most: int,
    reserve: bool,
    failing_steps: set[int],
) -> None:
    expected = {}
    for request in requests:
        alone = Engine(target(vocab_size=13))
        alone.add(request)
        expected[request.request_id] = [event for _ in range(40) for event in alone.step()]
    longest = max(len(request.prompt_tokens) + request.max_tokens for request in requests)
    executor = target(vocab_size=13, num_pages=2 + longest // 4 + spare_pages)
    options = EngineOptions(
        max_step_tokens=step_tokens,
        prompt_lookup=lookup,
        max_draft_tokens=most,
        reserve_answers=reserve,
    )
    small = None if draft is None else draft(vocab_size=13, num_pages=draft_pages)
    engine = Engine(executor, options, clock=no_time, draft_executor=small, check=True)
    for request in requests:
        engine.add(request)
    events = []
    tokens = sum(len(request.prompt_tokens) + request.max_tokens for request in requests)
    for step in range(2 * tokens + len(failing_steps)):
        executor.before_step = _fail if step in failing_steps else _pass
        try:
            events += engine.step()
        except ExecutorFailed:
            assert step in failing_steps
    assert not engine.has_work, "livelock"
    assert engine.pages_in_use == 0
    for request in requests:
        ours = [
            (event.token_id, event.finish_reason, event.logprobs)
            for event in events
            if event.request_id == request.request_id
        ]
        theirs = expected[request.request_id]
        assert ours == [(e.token_id, e.finish_reason, e.logprobs) for e in theirs]


def _fail(batch: StepBatch) -> None:
    raise RuntimeError("once")


def _pass(batch: StepBatch) -> None:
    pass


class Falls:
    """A grammar without rules that cannot take the fifth token."""

    finished = False

    def __init__(self) -> None:
        self._taken = 0

    def compute(self) -> None: ...

    def permits(self, token_id: int) -> bool:
        return True

    def allowed(self) -> npt.NDArray[np.intp]:
        return np.arange(23)

    def forbidden(self) -> npt.NDArray[np.intp] | None:
        return np.empty(0, np.intp)

    def accept(self, token_id: int) -> None:
        self._taken += 1
        if self._taken == 5:
            raise RuntimeError("the grammar fell over")


@pytest.mark.parametrize("options", [EngineOptions(), LOOKUP])
def test_a_grammar_that_falls_over_ends_its_request_alone(options: EngineOptions) -> None:
    """A6."""
    sound = Request("sound", (1, 2, 3, 4, 1, 2), 30, GREEDY)
    expected = texts(Engine(Looping()), [sound]).tokens["sound"]
    engine = Engine(Looping(), options, clock=no_time, check=True)
    engine.add(replace(sound, request_id="held"), Falls())
    transcript = texts(engine, [sound])
    assert transcript.tokens == {"held": expected[:4], "sound": expected}
    end = transcript.ends["held"]
    assert end.finish_reason == "error" and "fell over" in (end.error or "")


@pytest.mark.parametrize(
    "params", [GREEDY, SamplingParams(seed=7), SamplingParams(seed=8, top_k=4)]
)
def test_a_grammar_holds_guesses_as_it_holds_draws(params: SamplingParams) -> None:
    """Guesses know nothing of it; those that it forbids do not come true, and it moves with the
    draws alone."""
    slots: list[set[int]] = [{1, 2, 3, 4, 5}, {6, 7, mix(1) % 23}, set(range(0, 22, 2))] * 7
    request = Request("a", (1, 2, 3, 1, 2), 40, params)
    said = []
    for options in (EngineOptions(), LOOKUP):
        engine = Engine(Looping(), options, clock=no_time, check=True)
        engine.add(request, Slots(slots))
        transcript = run_to_end(engine)
        said.append((transcript.tokens["a"], transcript.ends["a"].finish_reason))
        assert all(t in slot for t, slot in zip(transcript.tokens["a"], slots, strict=True))
    assert said[0] == said[1] and said[0][1] == "stop"
    assert engine.stats.draft_tokens > 0


class Counted:
    """Steps of the model, and of the small one, cost what they cost; nothing else takes time."""

    def __init__(self, fixed: float, each: float, small: float = 0.0) -> None:
        self.now = 0.0
        self.fixed, self.each, self.small = fixed, each, small

    def clock(self) -> float:
        return self.now

    def spend(self, batch: StepBatch) -> None:
        self.now += self.fixed + self.each * len(batch.token_ids)

    def spend_small(self, batch: StepBatch) -> None:
        self.now += self.small


def seconds(
    machine: Counted,
    executor: FakeExecutor,
    options: EngineOptions,
    draft: FakeExecutor | None = None,
    tokens: int = 400,
) -> float:
    executor.before_step = machine.spend
    if draft is not None:
        draft.before_step = machine.spend_small
    engine = Engine(executor, options, clock=machine.clock, draft_executor=draft)
    engine.add(Request("a", (1, 2, 3, 1, 2), tokens, GREEDY))
    started = machine.now
    run_to_end(engine)
    return machine.now - started


LARGE = {"num_pages": 300, "max_positions": 2000}


@pytest.mark.parametrize(("fixed", "each"), [(3.0, 1.0), (1.0, 0.02), (0.1, 1.0)])
def test_what_loses_is_left(fixed: float, each: float) -> None:
    """Text at random, where two tokens often agree by chance: under 8 % are lost to trying."""
    executor = FakeExecutor(vocab_size=5, **LARGE)
    without = seconds(Counted(fixed, each), executor, EngineOptions())
    tried = seconds(Counted(fixed, each), executor, LOOKUP)
    assert tried < 1.08 * without
    contrary = Contrary(vocab_size=5, **LARGE)
    dear = seconds(Counted(fixed, each, fixed), executor, EngineOptions(), contrary)
    assert dear < 1.2 * without


@pytest.mark.parametrize(("fixed", "each", "gain"), [(3.0, 1.0, 1.5), (1.0, 0.02, 3.0)])
def test_what_wins_is_kept(fixed: float, each: float, gain: float) -> None:
    without = seconds(Counted(fixed, each), Looping(**LARGE), EngineOptions())
    with_lookup = seconds(Counted(fixed, each), Looping(**LARGE), LOOKUP)
    assert with_lookup * gain < without
    twin = Looping(**LARGE)
    with_model = seconds(Counted(fixed, each, 0.05), Looping(**LARGE), EngineOptions(), twin)
    assert with_model * gain < without


def test_a_slow_beginning_is_not_held_against_a_model() -> None:
    machine = Counted(3.0, 0.1)
    twin = Looping(**LARGE)
    without = seconds(machine, Looping(**LARGE), EngineOptions())
    slow = iter([20.0, 20.0, 20.0])

    def spend(batch: StepBatch) -> None:
        machine.now += next(slow, 0.05)

    executor = Looping(**LARGE)
    executor.before_step, twin.before_step = machine.spend, spend
    engine = Engine(executor, clock=machine.clock, draft_executor=twin)
    engine.add(Request("a", (1, 2, 3, 1, 2), 400, GREEDY))
    started = machine.now
    run_to_end(engine)
    assert (machine.now - started - 60) * 1.5 < without


def test_a_full_batch_guesses_only_what_is_nearly_sure() -> None:
    """Where rows cost more than the step itself, sixteen streams leave chance alone."""
    machine = Counted(3.0, 1.0)
    executor = FakeExecutor(vocab_size=5, num_pages=800, max_positions=2000)
    executor.before_step = machine.spend
    engine = Engine(executor, LOOKUP, clock=machine.clock)
    for index in range(16):
        engine.add(Request(str(index), (index % 5, 1, 2), 60, GREEDY))
    run_to_end(engine)
    assert engine.stats.draft_tokens < 0.1 * engine.stats.generated_tokens
