"""Two processes over gloo serve one checkpoint; what goes wrong in one of them is told."""

from pathlib import Path

import numpy as np
import pytest

from compile.open_model import open_model
from quant.format.errors import InputError
from quant.format.scheme import ActivationScheme, IntScheme, PerChannel, PerGroup
from runtime.engine.batch import ChoosesTokens, PlainDraw, StepBatch
from runtime.engine.engine import Engine
from runtime.engine.request import Request, SamplingParams
from runtime.executors.torch import TorchExecutor
from runtime.parallel import start_parallel
from runtime.part_spec import PartSpec
from tests.runtime.gpu import COMPILED
from tests.tiny import tiny_checkpoint

# The device is chosen before kernels are defined.
from runtime.executors.cuda import CudaExecutor  # isort: skip

PAGES, PAGE_SIZE = 12, 8


def test_two_processes_give_the_logits_of_one(tmp_path: Path) -> None:
    """Rounded by one scale for each token, which no process can make of its own part."""
    scheme = IntScheme(8, True, PerChannel(), ActivationScheme("int8"))
    checkpoint = tiny_checkpoint(tmp_path / "model", "llama", scheme=scheme)
    model = open_model(checkpoint)
    spec = PartSpec(checkpoint, "torch", PAGES, PAGE_SIZE)
    alone = TorchExecutor(model, num_pages=PAGES, page_size=PAGE_SIZE)
    together = start_parallel(model, spec, ranks=2)
    try:
        tokens = np.arange(5, 18, dtype=np.int32)
        order = np.arange(len(tokens), dtype=np.int32)
        starts = np.array([0, len(tokens)], np.int32)
        batch = StepBatch(tokens, order, starts, np.array([[4, 2]], np.int32), order)
        expected, found = alone.step(batch), together.step(batch)
        assert np.abs(found - expected).max() <= 2.0**-16 * np.abs(expected).max()
        hidden = together.hidden(batch)
        assert np.abs(hidden - alone.hidden(batch)).max() <= 2.0**-16 * np.abs(hidden).max()
        # The scheduler runs in the first process; pages, chunks and tokens reach the other.
        request = Request("a", tuple(range(5, 25)), 6, SamplingParams(temperature=0.0))
        answers = []
        for executor in (alone, together):
            engine = Engine(executor)
            engine.add(request)
            events = []
            while engine.has_work:
                events += engine.step()
            answers.append([event.token_id for event in events])
        assert answers[0] == answers[1] and len(answers[0]) == 6
    finally:
        together.close()
    assert together._followers == []


def test_a_process_that_cannot_load_says_why(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model", "llama")
    model = open_model(checkpoint)
    gone = PartSpec(tmp_path / "elsewhere", "torch", PAGES, PAGE_SIZE)
    with pytest.raises(InputError, match=r"process 1 of 2 could not load its part: .*elsewhere"):
        start_parallel(model, gone, ranks=2)


def test_a_backend_that_has_no_ranks_is_refused(tmp_path: Path) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model", "llama")
    with pytest.raises(InputError, match="the cpu backend runs a model in one process"):
        start_parallel(open_model(checkpoint), PartSpec(checkpoint, "cpu", 4, 8), ranks=2)


@pytest.mark.skipif(COMPILED, reason="two processes need two GPUs, or the interpreter")
def test_two_processes_of_the_gpus_engine_give_the_logits_of_one(tmp_path: Path) -> None:
    """Groups of 4-bit weights are split with their scales; the first process chooses tokens."""
    scheme = IntScheme(4, False, PerGroup(32))
    checkpoint = tiny_checkpoint(tmp_path / "model", "llama", scheme=scheme, layers=1)
    model = open_model(checkpoint)
    spec = PartSpec(checkpoint, "cuda", PAGES, 16, exact=True, device="cpu")
    alone = CudaExecutor(model, num_pages=PAGES, page_size=16, device="cpu", dtype="float32")
    together = start_parallel(model, spec, ranks=2)
    try:
        order = np.arange(5, dtype=np.int32)
        starts = np.array([0, 5], np.int32)
        batch = StepBatch(order + 7, order, starts, np.array([[4]], np.int32), order)
        expected, found = alone.step(batch), together.step(batch)
        assert np.abs(found - expected).max() <= 2.0**-16 * np.abs(expected).max()
        assert isinstance(together, ChoosesTokens)
        greedy = [PlainDraw(0.0, 0, 1.0, 0.0, 0.5)] * 5
        assert together.choose(batch, greedy).tolist() == expected.argmax(axis=1).tolist()
    finally:
        together.close()
