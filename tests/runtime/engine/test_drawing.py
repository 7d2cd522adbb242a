"""An executor that draws from its own logits gives the answers that numpy would."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from runtime.engine.batch import PlainDraw, StepBatch
from runtime.engine.candidates import Float32, draw_token
from runtime.engine.engine import Engine
from runtime.engine.options import EngineOptions
from runtime.engine.request import Request, SamplingParams, TokenEvent
from runtime.engine.runner import ExecutorFailed
from runtime.executors.cpu import CpuExecutor
from tests.runtime.engine.fake_executor import FakeExecutor, run_to_end
from tests.tiny import tiny_model

VOCAB = 64
PLAIN = (
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=0.9, seed=3, top_k=9),
    SamplingParams(temperature=1.3, seed=4, top_p=0.8, min_p=0.01),
)
SEEN = (
    SamplingParams(temperature=0.8, seed=5, logprobs=2),
    SamplingParams(temperature=0.7, seed=1, repetition_penalty=1.2),
    SamplingParams(temperature=1.1, seed=2, logit_bias={1: 2.0}, top_k=20),
)
"""Whose rows have to be looked at, or changed first."""


class Drawer(FakeExecutor):
    """Draws as numpy does, and keeps how many rows it was asked for at a time."""

    def __init__(self) -> None:
        super().__init__(num_pages=40, page_size=4, vocab_size=VOCAB, max_positions=64)
        self.counts: list[int] = []

    def draw(self, logits: Float32, rows: Sequence[int], draws: Sequence[PlainDraw]) -> list[int]:
        self.counts.append(len(rows))
        found = []
        for row, each in zip(rows, draws, strict=True):
            params = SamplingParams(each.temperature, each.top_k, each.top_p, each.min_p)
            found.append(draw_token(logits[row], params, each.uniform))
        return found


def answers(executor: FakeExecutor, requests: Sequence[Request]) -> dict[str, list[int]]:
    engine = Engine(executor, EngineOptions(max_step_tokens=7), check=True)
    for request in requests:
        engine.add(request)
    return run_to_end(engine).tokens


def plain_executor() -> FakeExecutor:
    return FakeExecutor(num_pages=40, page_size=4, vocab_size=VOCAB, max_positions=64)


def requests_of(*params: SamplingParams) -> list[Request]:
    return [
        Request(str(index), tuple(range(3 + index, 12 + 2 * index)), 6, each)
        for index, each in enumerate(params)
    ]


@pytest.mark.parametrize("params", [PLAIN, SEEN, PLAIN + SEEN])
def test_the_same_answers(params: tuple[SamplingParams, ...]) -> None:
    drawer = Drawer()
    requests = requests_of(*params)
    assert answers(drawer, requests) == answers(plain_executor(), requests)
    assert drawer.counts, "numpy drew"


def test_plain_rows_are_drawn_together_and_others_one_by_one() -> None:
    """Requests that are all decoding share a call; the greedy one needs none."""
    drawer = Drawer()
    answers(drawer, requests_of(*PLAIN))
    assert max(drawer.counts) == 2
    drawer = Drawer()
    answers(drawer, requests_of(*SEEN))
    assert set(drawer.counts) == {1}


def test_ending_tokens_that_must_not_come_yet_are_not_drawn() -> None:
    drawer = Drawer()
    requests = [
        replace(each, min_tokens=3, stop_token_ids=frozenset(range(0, VOCAB, 2)))
        for each in requests_of(*PLAIN)
    ]
    assert answers(drawer, requests) == answers(plain_executor(), requests)


def test_a_row_without_finite_numbers_ends_its_request_alone() -> None:
    class Broken(Drawer):
        def step(self, batch: StepBatch) -> Float32:
            logits = super().step(batch)
            if len(logits) == 2:
                logits[1] = np.nan
            return logits

    engine = Engine(Broken(), EngineOptions(max_step_tokens=64), check=True)
    for request in requests_of(*PLAIN[1:]):
        engine.add(request)
    transcript = run_to_end(engine)
    assert transcript.ends["0"].finish_reason == "length"
    assert transcript.ends["1"].error is not None


def test_a_step_that_is_tried_again_draws_what_it_would_have_drawn() -> None:
    drawer, failures = Drawer(), iter([False, False, True, False, True])

    def fail_sometimes(batch: StepBatch) -> None:
        if next(failures, False):
            raise RuntimeError("the device fell over")

    drawer.before_step = fail_sometimes
    engine = Engine(drawer, EngineOptions(max_step_tokens=64), check=True)
    requests = requests_of(*PLAIN)
    for request in requests:
        engine.add(request)
    events: list[TokenEvent] = []
    failed = 0
    while engine.has_work:
        try:
            events += engine.step()
        except ExecutorFailed:
            failed += 1
    assert failed == 2
    found = {
        request.request_id: [e.token_id for e in events if e.request_id == request.request_id]
        for request in requests
    }
    assert found == answers(plain_executor(), requests)


def test_the_cpu_executor_draws_the_same_in_company_and_alone() -> None:
    """And beside one whose rows are looked at, which takes the way of a single row."""
    model = tiny_model()
    vocab = model.program.sizes.vocab_size
    params = [
        SamplingParams(temperature=0.9, seed=1, top_p=0.9),
        SamplingParams(temperature=1.2, seed=2, top_k=30),
        SamplingParams(temperature=1.0, seed=3),
        SamplingParams(temperature=0.0),
    ]
    requests = [
        Request(str(i), tuple(range(5 + i, 25 + 2 * i)), 8, each) for i, each in enumerate(params)
    ]

    def run(chosen: Sequence[Request]) -> dict[str, list[int]]:
        executor = CpuExecutor(model, num_pages=30, page_size=16, threads=2)
        assert executor.vocab_size == vocab
        found = answers(executor, chosen)  # type: ignore[arg-type]
        executor.close()
        return found

    together = run(requests)
    for request in requests:
        (alone,) = run([request]).values()
        assert alone == together[request.request_id]
    shown = [replace(each, sampling=replace(each.sampling, logprobs=1)) for each in requests]
    assert run(shown) == together
