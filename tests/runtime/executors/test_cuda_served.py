"""On a GPU: real and large models answer as the oracle would, up to ties. In the interpreter these
would take hours."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from compile.model import Model
from compile.open_model import open_model
from runtime.engine.batch import Executor, StepBatch
from runtime.engine.engine import Engine
from runtime.engine.request import Request, SamplingParams
from runtime.executors.torch import TorchExecutor
from tests.runtime.gpu import COMPILED

# The device is chosen before kernels are defined.
from benchmarks.on_gpu.made_up import random_model  # isort: skip
from runtime.executors.cuda import CudaExecutor, CudaRecorder  # isort: skip

pytestmark = pytest.mark.skipif(not COMPILED, reason="needs an NVIDIA GPU")

PAGES, PAGE_SIZE, ANSWER = 64, 32, 32
TIE = 0.03
"""Part of the spread of a row's logits: bfloat16 keeps 8 bits, and a token within a few of its
steps of the best one is as good as it."""


def answers(executor: Executor, prompts: Sequence[tuple[int, ...]]) -> list[list[int]]:
    """Greedy tokens of all prompts, served together."""
    engine = Engine(executor)
    for number, prompt in enumerate(prompts):
        engine.add(Request(str(number), prompt, ANSWER, SamplingParams(temperature=0.0)))
    found: list[list[int]] = [[] for _ in prompts]
    while engine.has_work:
        for event in engine.step():
            if event.token_id is not None:
                found[int(event.request_id)].append(event.token_id)
    return found


def assert_answers_as_the_oracle(model: Model) -> None:
    prompts = [tuple(range(7, 7 + length)) for length in (5, 40, 70)]
    executor = CudaExecutor(model, num_pages=PAGES, page_size=PAGE_SIZE, recorder=CudaRecorder())
    found = answers(executor, prompts)
    executor.close()
    oracle = TorchExecutor(model, num_pages=PAGES, page_size=PAGE_SIZE, device="cuda")
    for prompt, answer in zip(prompts, found, strict=True):
        tokens = np.array([*prompt, *answer[:-1]], np.int32)
        order = np.arange(len(tokens), dtype=np.int32)
        table = 1 + np.arange(-(-len(tokens) // PAGE_SIZE), dtype=np.int32)[None]
        rows = order[len(prompt) - 1 :]
        starts = np.array([0, len(tokens)], np.int32)
        logits = oracle.step(StepBatch(tokens, order, starts, table, rows))
        best = logits.max(axis=1)
        chosen = logits[np.arange(len(answer)), answer]
        assert (best - chosen <= TIE * (best - logits.mean(axis=1))).all()


@pytest.mark.demo_model
def test_smollm2(demo_checkpoint: Path) -> None:
    assert_answers_as_the_oracle(open_model(demo_checkpoint))


@pytest.mark.parametrize("scheme", ["w4a16", "fp8", "bfloat16"])
def test_the_shape_of_1_1_billion_weights(scheme: str) -> None:
    assert_answers_as_the_oracle(random_model("1.1B", scheme))
