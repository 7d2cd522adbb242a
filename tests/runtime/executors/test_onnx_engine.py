"""The engine over ONNX Runtime: the oracle's answers, chunked, together and preempted."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from runtime.engine.batch import Executor, StepBatch
from runtime.engine.engine import Engine
from runtime.engine.options import EngineOptions
from runtime.engine.request import Request, SamplingParams
from runtime.engine.runner import ExecutorFailed
from runtime.executors.onnx import OnnxExecutor
from runtime.executors.torch import TorchExecutor
from tests.runtime.executors.onnx_models import INT4, model_and_artifact, random_tokens

NUM_PAGES, PAGE_SIZE, ANSWER = 14, 4, 12
Answers = dict[str, list[int]]


def requests() -> list[Request]:
    greedy = SamplingParams(temperature=0.0)
    return [
        Request(str(n), tuple(random_tokens(5 + 4 * n, seed=n).tolist()), ANSWER, greedy)
        for n in range(5)
    ]


def answers_of(executor: Executor, asked: list[Request]) -> tuple[Answers, int]:
    """Tokens of each request, and how often one was preempted. Prompts come in chunks of 7."""
    engine = Engine(executor, EngineOptions(max_step_tokens=7), check=True)
    for request in asked:
        engine.add(request)
    answers: Answers = {request.request_id: [] for request in asked}
    while engine.has_work:
        for event in engine.step():
            assert event.error is None
            if event.token_id is not None:
                answers[event.request_id].append(event.token_id)
    return answers, engine.stats.preemptions


def onnx_executor(directory: Path) -> tuple[TorchExecutor, OnnxExecutor]:
    model, artifact = model_and_artifact(directory, "mistral", sliding_window=9, scheme=INT4)
    oracle = TorchExecutor(model, num_pages=NUM_PAGES, page_size=PAGE_SIZE)
    options = {"num_pages": NUM_PAGES, "page_size": PAGE_SIZE, "threads": 1}
    return oracle, OnnxExecutor(artifact, exact=True, **options)


def test_answers_are_the_oracles_whatever_the_company(tmp_path: Path) -> None:
    oracle, executor = onnx_executor(tmp_path)
    expected, preemptions = answers_of(oracle, requests())
    found, ours = answers_of(executor, requests())
    assert preemptions == ours > 0
    assert found == expected
    assert {len(answer) for answer in found.values()} == {ANSWER}
    for request in requests():
        alone, _ = answers_of(executor, [request])
        assert alone == {request.request_id: expected[request.request_id]}


def test_a_step_that_fails_is_rolled_back_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle, executor = onnx_executor(tmp_path)
    (expected, _), asked = answers_of(oracle, requests()[:1]), requests()[:1]
    engine = Engine(executor, EngineOptions(max_step_tokens=7), check=True)
    engine.add(asked[0])
    tokens: list[int] = []
    step = OnnxExecutor.step

    def broken(self: OnnxExecutor, batch: StepBatch) -> npt.NDArray[np.float32]:
        wrong = {**vars(batch), "token_ids": batch.token_ids + 10_000}
        return step(self, StepBatch(**wrong))

    while engine.has_work:
        # ONNX Runtime refuses a token beyond the table; the step is then run as it was meant.
        monkeypatch.setattr(OnnxExecutor, "step", broken)
        with pytest.raises(ExecutorFailed):
            engine.step()
        monkeypatch.setattr(OnnxExecutor, "step", step)
        tokens += [event.token_id for event in engine.step() if event.token_id is not None]
    assert tokens == expected[asked[0].request_id]
