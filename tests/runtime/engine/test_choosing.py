"""An executor that chooses tokens itself gives the answers that logits would."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pytest

from runtime.engine.batch import NO_TOKEN, NOTHING_LEFT, Follows, PlainDraw, StepBatch
from runtime.engine.candidates import Float32, draw_token
from runtime.engine.constraint import Constraint
from runtime.engine.edits import apply
from runtime.engine.engine import Engine
from runtime.engine.options import EngineOptions
from runtime.engine.request import Request, SamplingParams, TokenEvent
from runtime.engine.runner import ExecutorFailed
from tests.runtime.engine.fake_executor import FakeExecutor, run_to_end
from tests.runtime.engine.test_constraint import SlotGrammars

VOCAB = 64


class Chooser(FakeExecutor):
    """Draws as the engine would, and counts what it is asked for."""

    def __init__(self) -> None:
        super().__init__(num_pages=40, page_size=4, vocab_size=VOCAB, max_positions=64)
        self.choices = 0
        self.broken = False

    def choose(self, batch: StepBatch, draws: Sequence[PlainDraw]) -> npt.NDArray[np.int32]:
        self.choices += 1
        assert len(draws) == len(batch.logit_rows)
        logits = self.step(batch)
        tokens = [_drawn(row, draw) for row, draw in zip(logits, draws, strict=True)]
        return np.array([NO_TOKEN] * len(tokens) if self.broken else tokens, np.int32)


def _drawn(row: Float32, draw: PlainDraw) -> int:
    row = row if draw.edits is None else apply(row, draw.edits)
    if not np.isfinite(row.max()):
        return NOTHING_LEFT
    params = SamplingParams(draw.temperature, draw.top_k, draw.top_p, draw.min_p)
    return int(row.argmax()) if draw.temperature == 0 else draw_token(row, params, draw.uniform)


class Runner(Chooser):
    """Begins steps ahead; nobody is told of a token before it is asked for. log: "begin" and
    "read", in order."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []
        self.fails_at: int | None = None

    def begin(
        self, batch: StepBatch, draws: Sequence[PlainDraw], follows: Follows | None = None
    ) -> "InFlight":
        self.log.append("begin")
        if self.log.count("begin") == self.fails_at:
            raise RuntimeError("the device fell over")
        if follows is not None:
            assert isinstance(follows.step, InFlight) and not batch.token_ids.any()
            known = np.maximum(follows.step.chosen[follows.rows], 0).astype(np.int32)
            batch = replace(batch, token_ids=known)
        return InFlight(self.choose(batch, draws), self.log)


@dataclass(frozen=True, eq=False)
class InFlight:
    chosen: npt.NDArray[np.int32]
    log: list[str]

    def tokens(self) -> npt.NDArray[np.int32]:
        self.log.append("read")
        return self.chosen


def run(executor: FakeExecutor, requests: Sequence[Request]) -> dict[str, list[TokenEvent]]:
    engine = Engine(executor, EngineOptions(max_step_tokens=7), check=True)
    for request in requests:
        engine.add(request)
    found: dict[str, list[TokenEvent]] = {request.request_id: [] for request in requests}
    while engine.has_work:
        for event in engine.step():
            found[event.request_id].append(event)
    return found


def requests_of(*params: SamplingParams) -> list[Request]:
    return [
        Request(str(index), tuple(range(3 + index, 12 + 2 * index)), 6, each)
        for index, each in enumerate(params)
    ]


def plain_executor() -> FakeExecutor:
    return FakeExecutor(num_pages=40, page_size=4, vocab_size=VOCAB, max_positions=64)


PLAIN = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.9, seed=3, top_k=9),
    SamplingParams(temperature=1.3, seed=4, top_p=0.8, min_p=0.01),
)


def tokens(found: dict[str, list[TokenEvent]]) -> dict[str, list[int | None]]:
    return {name: [event.token_id for event in events] for name, events in found.items()}


def test_the_same_answers_and_no_logits() -> None:
    chooser = Chooser()
    expected, found = run(plain_executor(), requests_of(*PLAIN)), run(chooser, requests_of(*PLAIN))
    assert tokens(found) == tokens(expected)
    assert chooser.choices > 6
    last = {name: events[-1].finish_reason for name, events in found.items()}
    assert last == {name: events[-1].finish_reason for name, events in expected.items()}


def test_one_that_must_see_logits_makes_all_of_its_steps_give_them() -> None:
    chooser = Chooser()
    requests = requests_of(*PLAIN, SamplingParams(temperature=0.0, logprobs=2))
    assert tokens(run(chooser, requests)) == tokens(run(plain_executor(), requests))


EDITED = (
    SamplingParams(temperature=0.0, logit_bias={5: 3.0, 9: -1.5}),
    SamplingParams(temperature=0.7, seed=1, repetition_penalty=1.2),
    SamplingParams(temperature=0.9, seed=2, frequency_penalty=0.7, presence_penalty=-0.4),
    SamplingParams(temperature=0.0, allowed_token_ids=(7, 8, 9, 40)),
    SamplingParams(temperature=0.0, bad_words=((7,), (8, 9), (3, 4))),
    SamplingParams(
        temperature=1.1, seed=5, top_k=20, repetition_penalty=0.8, frequency_penalty=1.5,
        logit_bias={1: 2.0}, bad_words=((11,),),
    ),
)  # fmt: skip


@pytest.mark.parametrize("executor", [Chooser, Runner])
def test_edited_rows_are_chosen_there_too(executor: type[Chooser]) -> None:
    """Beside plain ones, and with ending tokens that must not come yet."""
    chooser = executor()
    requests = [
        replace(request, min_tokens=3, stop_token_ids=frozenset({2, 7, 40}))
        for request in requests_of(*EDITED, *PLAIN)
    ]
    expected = run(plain_executor(), requests)
    assert tokens(run(chooser, requests)) == tokens(expected)
    assert chooser.choices == len(chooser.batches), "a step gave its logits"


@pytest.mark.parametrize("text", ["1 2|3|5|8 4", "1|2 22|!", "22 5|22"])
def test_constrained_rows_too(text: str) -> None:
    """A slot that leaves all but a few tokens is told as what it forbids."""
    greedy = SamplingParams(temperature=0.0, repetition_penalty=1.3)
    request = Request("a", (3, 4), 5, greedy, constraint=Constraint("lark", text))
    most = "|".join([" ".join(map(str, range(20)))] * 4)
    wide = replace(request, request_id="b", constraint=Constraint("lark", most))
    found = []
    for executor in (FakeExecutor(), NarrowChooser()):
        engine = Engine(executor, check=True, grammars=SlotGrammars())
        for each in (request, wide):
            engine.add(each)
        transcript = run_to_end(engine)
        ends = {name: (end.finish_reason, end.error) for name, end in transcript.ends.items()}
        found.append((transcript.tokens, ends))
    assert found[0] == found[1]


class NarrowChooser(Chooser):
    """Over the vocabulary of the grammars' tests."""

    def __init__(self) -> None:
        FakeExecutor.__init__(self)
        self.choices, self.broken = 0, False


def test_edits_that_leave_nothing_end_the_request_alone() -> None:
    requests = requests_of(SamplingParams(allowed_token_ids=(7,), bad_words=((7,),)), PLAIN[0])
    found, expected = run(Runner(), requests), run(plain_executor(), requests)
    assert found["0"][-1].error == expected["0"][-1].error is not None
    assert tokens(found) == tokens(expected)


def test_a_step_begins_before_the_one_before_it_is_read() -> None:
    runner = Runner()
    requests = [replace(request, max_tokens=12) for request in requests_of(*PLAIN)]
    assert tokens(run(runner, requests)) == tokens(run(plain_executor(), requests))
    ahead = sum(runner.log[i : i + 2] == ["begin", "begin"] for i in range(len(runner.log)))
    assert ahead >= 1 and "".join(word[0] for word in runner.log).count("brbrbr") >= 1
    assert runner.log.count("begin") == runner.log.count("read"), "none is begun in vain"


@pytest.mark.parametrize("stop", [None, frozenset(range(0, VOCAB, 5))])
@pytest.mark.parametrize("num_pages", [40, 12])
def test_what_comes_and_goes_meanwhile_changes_no_text(
    stop: frozenset[int] | None, num_pages: int
) -> None:
    """Requests come between steps, end by stop tokens, are aborted with a step in flight, and wait
    for pages; those that stay say what they say alone."""
    requests = [
        Request(
            str(i), tuple(range(2 + i, 9 + 2 * i)), 4 + 3 * i, PLAIN[i % 3], stop or frozenset()
        )
        for i in range(6)
    ]
    alone: dict[str, list[int | None]] = {}
    for request in requests:
        alone |= tokens(run(plain_executor(), [request]))
    runner = Runner()
    runner.num_pages = num_pages
    engine = Engine(runner, EngineOptions(max_step_tokens=24, max_running=4), check=True)
    found: dict[str, list[int | None]] = {request.request_id: [] for request in requests}
    for number in range(200):
        if number % 3 == 0 and requests[number // 3 :][:1]:
            engine.add(requests[number // 3])
        if number == 8:
            engine.abort("1")
        for event in engine.step():
            found[event.request_id].append(event.token_id)
    assert not engine.has_work
    for name, said in found.items():
        expected = alone[name][: len(said)] if name == "1" else alone[name]
        assert said == expected
    assert engine.stats.pages_in_use == 0


def test_a_step_that_cannot_begin_takes_back_the_pages_of_both() -> None:
    runner = Runner()
    engine = Engine(runner, check=True)
    engine.add(replace(requests_of(PLAIN[0])[0], max_tokens=20))
    runner.fails_at = 4
    with pytest.raises(ExecutorFailed, match="fell over"):
        for _ in range(20):
            engine.step()
    engine.check_integrity()
    engine.abort("0")
    assert engine.pages_in_use == 0 and not engine.has_work


def test_starting_afresh_forgets_the_step_in_flight() -> None:
    runner = Runner()
    engine = Engine(runner, check=True)
    request = replace(requests_of(PLAIN[0])[0], max_tokens=20)
    engine.add(request)
    for _ in range(3):
        engine.step()
    assert engine.reset() == ("0",)
    engine.add(request)
    assert run_to_end(engine).tokens["0"] == tokens(run(plain_executor(), [request]))["0"]


def test_no_token_ends_the_request_as_corrupted() -> None:
    chooser = Chooser()
    chooser.broken = True
    engine = Engine(chooser, check=True)
    engine.add(requests_of(PLAIN[0])[0])
    (event,) = engine.step()
    assert (event.token_id, event.finish_reason) == (None, "error")
    assert engine.stats.corrupted_requests == 1 and not engine.has_work
