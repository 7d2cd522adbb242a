"""An executor that chooses tokens itself gives the answers that logits would."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from runtime.engine.batch import NO_TOKEN, PlainDraw, StepBatch
from runtime.engine.candidates import draw_token
from runtime.engine.engine import Engine
from runtime.engine.options import EngineOptions
from runtime.engine.request import Request, SamplingParams, TokenEvent
from tests.runtime.engine.fake_executor import FakeExecutor

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
        tokens = []
        for row, draw in zip(logits, draws, strict=True):
            params = SamplingParams(draw.temperature, draw.top_k, draw.top_p, draw.min_p)
            greedy = draw.temperature == 0
            tokens.append(int(row.argmax()) if greedy else draw_token(row, params, draw.uniform))
        return np.array([NO_TOKEN] * len(tokens) if self.broken else tokens, np.int32)


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


@pytest.mark.parametrize(
    "other",
    [
        SamplingParams(temperature=0.0, logprobs=2),
        SamplingParams(temperature=0.0, logit_bias={5: 3.0}),
        SamplingParams(temperature=0.7, seed=1, repetition_penalty=1.2),
        SamplingParams(temperature=0.0, allowed_token_ids=(7, 8, 9)),
    ],
)
def test_one_that_must_see_logits_makes_all_of_its_steps_give_them(other: SamplingParams) -> None:
    chooser = Chooser()
    requests = requests_of(*PLAIN, other)
    assert tokens(run(chooser, requests)) == tokens(run(plain_executor(), requests))


def test_no_token_ends_the_request_as_corrupted() -> None:
    chooser = Chooser()
    chooser.broken = True
    engine = Engine(chooser, check=True)
    engine.add(requests_of(PLAIN[0])[0])
    (event,) = engine.step()
    assert (event.token_id, event.finish_reason) == (None, "error")
    assert engine.stats.corrupted_requests == 1 and not engine.has_work
