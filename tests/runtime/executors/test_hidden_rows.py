"""The rows that logits are made of, which embeddings are pooled from."""

from dataclasses import replace

import numpy as np
import pytest

from runtime.engine.batch import GivesHidden, StepBatch
from runtime.executors.cpu import CpuExecutor
from runtime.executors.onnx import OnnxExecutor
from runtime.executors.torch import TorchExecutor
from tests.runtime.executors.test_cpu_executor import PAGE_SIZE, TOKENS, tolerance, whole
from tests.tiny import tiny_model

FAMILIES = ("llama", "qwen3", "gemma2", "phi3", "mixtral")


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_follow_the_oracle_and_lead_to_the_logits(family: str) -> None:
    model = tiny_model(family)
    batch = whole(TOKENS)
    oracle = TorchExecutor(model, num_pages=40, page_size=PAGE_SIZE, dtype="float64")
    native = CpuExecutor(model, num_pages=40, page_size=PAGE_SIZE)
    expected, found = oracle.hidden(batch), native.hidden(batch).copy()
    assert found.shape == (len(TOKENS), model.program.sizes.hidden_size)
    assert np.abs(found - expected).max() <= tolerance(model, expected)
    head = oracle._weights[model.program.ops[-1].weight].numpy()  # type: ignore[union-attr]
    logits, cap = expected.astype(np.float64) @ head.T, model.program.ops[-1].softcap  # type: ignore[union-attr]
    logits = logits if cap is None else cap * np.tanh(logits / cap)
    assert np.allclose(logits, oracle.step(batch), atol=1e-4)


def test_a_rows_bits_depend_on_the_row_alone() -> None:
    """Whole, in two chunks, with other rows wanted, and after a step that gave logits."""
    executor = CpuExecutor(tiny_model(), num_pages=40, page_size=PAGE_SIZE, max_step_tokens=8)
    batch = whole(TOKENS)
    expected = executor.hidden(batch).copy()
    wanted = np.array([3, len(TOKENS) - 1], np.int32)
    few = executor.hidden(replace(batch, logit_rows=wanted)).copy()
    assert few.tobytes() == expected[wanted].tobytes()
    cut = 19
    order = np.arange(len(TOKENS), dtype=np.int32)
    rows = []
    for first, last in ((0, cut), (cut, len(TOKENS))):
        places = order[: last - first]
        ends = np.array([0, last - first], np.int32)
        part = StepBatch(TOKENS[first:last], order[first:last], ends, batch.page_table, places)
        executor.step(part)
        rows.append(executor.hidden(part).copy())
    assert np.concatenate(rows).tobytes() == expected.tobytes()


def test_executors_say_whether_they_have_them() -> None:
    for kind, has in ((CpuExecutor, True), (TorchExecutor, True), (OnnxExecutor, False)):
        assert hasattr(kind, "hidden") == has == issubclass(kind, GivesHidden)
