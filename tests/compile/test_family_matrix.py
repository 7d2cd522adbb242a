"""Every family on every target, its integers and its logits: README's table, tested."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compile.families import FAMILIES
from compile.model import Model
from compile.open_model import open_model
from compile.to_gguf import build_gguf
from compile.to_onnx.build import build_onnx
from compile.verify import VerifyReport, verify
from quant.format.scheme import IntScheme, PerGroup
from quant.format.tensor import QuantizedTensor
from runtime.engine.batch import Executor
from runtime.executors.cpu import CpuExecutor
from runtime.executors.onnx import OnnxExecutor
from runtime.executors.torch import TorchExecutor
from tests.runtime.executors.onnx_models import (
    MIXED,
    NUM_PAGES,
    PAGE_SIZE,
    VERSION,
    rounding_bound,
    run_schedule,
    sequences_of,
)
from tests.tiny import tiny_checkpoint

INT4 = IntScheme(4, True, PerGroup(32))
POOL: dict[str, Any] = {"num_pages": NUM_PAGES, "page_size": PAGE_SIZE}


def checkpoint_of(directory: Path, family: str) -> Path:
    """With every linear of its layers in four bits. llama.cpp ties the head of gemma2."""
    tied = family == "gemma2"
    return tiny_checkpoint(directory / "model", family, scheme=INT4, tied=tied, layers=3)


def assert_follows_the_oracle(executor: Executor, checkpoint: Path) -> None:
    """Chunks, single tokens and pages that change hands, each row against the checkpoint's own."""
    model, sequences = open_model(checkpoint), sequences_of(MIXED)
    expected = run_schedule(TorchExecutor(model, dtype="float64", **POOL), MIXED, sequences)
    for ours, theirs in zip(run_schedule(executor, MIXED, sequences), expected, strict=True):
        assert np.abs(ours - theirs).max() <= rounding_bound(model, theirs)


def assert_same_integers(report: VerifyReport, model: Model) -> None:
    assert report.failures == []
    assert report.counts == {"equal": len(model.program.weights())}
    quantized = sum(
        isinstance(model.weights.load(name), QuantizedTensor) for name in model.program.weights()
    )
    assert quantized >= 3 * 4


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cpu_engine(family: str, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, family)
    assert_follows_the_oracle(CpuExecutor(open_model(checkpoint), threads=1, **POOL), checkpoint)


@pytest.mark.parametrize("family", FAMILIES)
def test_gguf(family: str, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, family)
    build_gguf(checkpoint, tmp_path / "model.gguf")
    model = open_model(tmp_path / "model.gguf")
    assert_same_integers(verify(tmp_path / "model.gguf", checkpoint), model)
    assert_follows_the_oracle(CpuExecutor(model, threads=1, **POOL), checkpoint)


@pytest.mark.parametrize("family", FAMILIES)
def test_onnx(family: str, tmp_path: Path) -> None:
    checkpoint = checkpoint_of(tmp_path, family)
    build_onnx(checkpoint, tmp_path / "onnx", version=VERSION)
    model = open_model(tmp_path / "onnx")
    assert_same_integers(verify(tmp_path / "onnx", checkpoint), model)
    assert_follows_the_oracle(OnnxExecutor(model, threads=1, exact=True, **POOL), checkpoint)


def test_the_table_has_a_row_for_each_family() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:] for line in readme.splitlines() if line.startswith("| `")]
    assert set(FAMILIES) <= {name for row in rows for name in re.findall("`(.+?)`", row[0])}
