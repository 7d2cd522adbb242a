"""The random models that a GPU is timed with hold what their names say; its table says it all."""

import json
from pathlib import Path

import numpy as np
import pytest

from compile.model import Model
from runtime.engine.batch import StepBatch
from tests.runtime.gpu import DEVICE

# The device is chosen before kernels are defined.
from benchmarks.on_gpu.limits import Limits  # isort: skip
from benchmarks.on_gpu.made_up import SCHEMES, config_of, model_of  # isort: skip
from benchmarks.on_gpu.models import bytes_of_a_step  # isort: skip
from benchmarks.on_gpu.table import Report, Row, as_markdown  # isort: skip
from runtime.executors.cuda import CudaExecutor  # isort: skip
from runtime.executors.cuda.memory import weights_on_device  # isort: skip

TINY = {
    "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 96,
}  # fmt: skip
LIMITS = Limits("a chip", 3e12, 9e14, None, 1.8e15)


def tiny(scheme: str) -> Model:
    return model_of("tiny", config_of(TINY), SCHEMES[scheme])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_random_models_run(scheme: str) -> None:
    model = tiny(scheme)
    executor = CudaExecutor(model, num_pages=4, page_size=16, device=str(DEVICE), dtype="float32")
    order = np.arange(5, dtype=np.int32)
    batch = StepBatch(order, order, np.array([0, 5], np.int32), np.array([[2]], np.int32), order)
    logits = executor.step(batch)
    assert logits.shape == (5, 96) and np.isfinite(logits).all() and logits.std() > 0
    for name, shape in model.program.weights().items():
        assert model.weights.load(name).shape == shape


def test_four_bits_are_counted_as_four_bits() -> None:
    bytes_of = {scheme: weights_on_device(tiny(scheme).program) for scheme in SCHEMES}
    linears = 128 * (128 + 64 + 64 + 128) + 3 * 128 * 256
    assert bytes_of["bfloat16"] - bytes_of["w4a16"] == linears * 12 // 8
    assert bytes_of["fp8"] - bytes_of["w4a16"] == linears * 4 // 8


def test_a_step_reads_no_table_of_embeddings() -> None:
    """Only the head, of the two matrices of the vocabulary."""
    assert bytes_of_a_step(tiny("w4a16"), 1_000_000) == 1_000_000 - 2 * 96 * 128


def test_the_table_has_every_figure_and_what_was_left_out(tmp_path: Path) -> None:
    rows = [Row("a kernel", 12.5, "us", 0.81, 0.8, 1e-4), Row("a peer", 3.0, "tokens/s")]
    report = Report(LIMITS, rows, ["peers 8B"], 12.3)
    text = as_markdown(report)
    assert "| a kernel | 12.5 us | 81% | 80% | 1.0e-04 |" in text
    assert "| a peer | 3 tokens/s |  |  |  |" in text
    assert "not measured: peers 8B" in text and "int8 -" in text
    report.write(tmp_path)
    kept = json.loads((tmp_path / "gpu.json").read_text())
    assert kept["rows"][0]["fraction"] == 0.81 and kept["seconds"] == 12.3
    assert (tmp_path / "gpu.md").read_text() == text
