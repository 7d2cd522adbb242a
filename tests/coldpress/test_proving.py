"""How the probe of `verify` is run, and how its report travels."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from coldpress.cli import run
from coldpress.pressing import build
from coldpress.proving import verify
from compile.manifest import read_manifest
from compile.parity import PARITY
from compile.verify import PROBE_TOKENS
from quant.format.errors import InputError
from quant.format.scheme import IntScheme, PerGroup
from runtime.engine.batch import StepBatch
from runtime.executors.cpu import CpuExecutor
from tests.tiny import tiny_checkpoint

INT4 = IntScheme(4, True, PerGroup(32))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("source") / "model", scheme=INT4)


@pytest.fixture
def artifact(checkpoint: Path, tmp_path: Path) -> Path:
    build(checkpoint, tmp_path / "artifact", target="gguf")
    return tmp_path / "artifact"


def test_the_artifact_is_run_as_a_server_runs_it(artifact: Path, checkpoint: Path) -> None:
    report = verify(artifact, against=checkpoint)
    assert report.passed and report.logits is not None and report.logits.schedule is not None
    assert report.logits.tokens == PROBE_TOKENS
    assert report.logits.schedule["preemptions"] >= 1
    assert report.logits.schedule["shared_tokens"] >= 8
    assert report.logits.engines is not None
    assert report.logits.engines["artifact"] == "cpu"
    assert report.logits.engines["reference"] in ("torch", "cpu")
    assert report.logits.bound is not None and report.logits.max_difference < report.logits.bound


def test_a_cache_that_is_not_kept_is_found(
    artifact: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every step but the first sees another past than it should."""
    step = CpuExecutor.step

    def forgetful(self: CpuExecutor, batch: StepBatch) -> npt.NDArray[np.float32]:
        table = np.roll(batch.page_table, 1, axis=0) if len(batch.page_table) > 1 else None
        if table is not None:
            batch = StepBatch(
                *(batch.token_ids, batch.positions, batch.query_starts, table, batch.logit_rows)
            )
        return step(self, batch)

    monkeypatch.setattr(CpuExecutor, "step", forgetful)
    report = verify(artifact, against=checkpoint)
    assert not report.passed and "logits differ by" in report.failures[-1]


def test_the_report_travels_with_the_artifact(artifact: Path, checkpoint: Path) -> None:
    assert verify(artifact, against=checkpoint, record=True).passed
    kept = json.loads((artifact / PARITY).read_text())
    assert kept["passed"] and (kept["artifact"], kept["against"]) == ("artifact", "model")
    assert kept["logits"]["schedule"]["preemptions"] >= 1
    equal = [tensor for tensor in kept["tensors"] if tensor["state"] == "equal"]
    assert equal and all(t["digest"] == t["reference_digest"] != "" for t in equal)
    assert PARITY in read_manifest(artifact).files
    first = (artifact / PARITY).read_bytes()
    assert verify(artifact).passed and verify(artifact, against=checkpoint, record=True).passed
    again = json.loads((artifact / PARITY).read_bytes())
    assert again["files_checked"] == json.loads(first)["files_checked"] + 1
    (artifact / PARITY).write_bytes(first.replace(b"equal", b"qeual"))
    assert "parity.json is changed" in " ".join(verify(artifact).failures)


def test_only_a_proof_is_kept(artifact: Path, checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--against"):
        verify(artifact, record=True)
    with pytest.raises(InputError, match=r"no manifest\.json"):
        verify(artifact / "model.gguf", against=checkpoint, logits=False, record=True)
    other = tiny_checkpoint(tmp_path / "other", scheme=INT4, rope_theta=5e5)
    assert not verify(artifact, against=other, record=True).passed
    assert not (artifact / PARITY).exists()


@pytest.mark.parametrize("target", ["gguf:q4_k_m", "onnx:int4"])
def test_a_build_can_prove_itself(
    target: str, checkpoint: Path, tmp_path: Path, run_json: Callable[..., Any]
) -> None:
    pytest.importorskip("onnxruntime")
    out = tmp_path / "artifact"
    told = run_json("build", str(checkpoint), "-o", str(out), "--target", target, "--verify")
    assert told["parity"]["passed"] and told["parity"]["failures"] == []
    kept = json.loads((out / PARITY).read_bytes())
    assert kept["logits"]["engines"]["artifact"] == ("cpu" if "gguf" in target else "onnx")
    assert kept["counts"] == told["parity"]["tensors"]
    assert verify(out).passed


def test_a_build_that_cannot_prove_itself_fails(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = CpuExecutor.step

    def noisy(self: CpuExecutor, batch: StepBatch) -> npt.NDArray[np.float32]:
        return step(self, batch) * (1 if len(batch.page_table) == 1 else 2)

    monkeypatch.setattr(CpuExecutor, "step", noisy)
    out = tmp_path / "artifact"
    args = ["build", str(checkpoint), "-o", str(out), "--target", "gguf", "--verify"]
    assert run(args) == 1
    assert not (out / PARITY).exists()


def test_rounding_costs_what_it_does_but_the_engine_has_its_bound(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(checkpoint, tmp_path / "artifact", target="gguf:q3_k_m")
    report = verify(tmp_path / "artifact", against=checkpoint)
    assert report.passed and report.counts["requantized"] > 0
    assert report.logits is not None and report.logits.bound is None
    assert report.engine is not None and report.engine.bound is not None
    assert report.engine.max_difference < 1e-3 < report.logits.max_difference
    assert report.engine.engines is not None and report.engine.engines["artifact"] == "cpu"
    step = CpuExecutor.step

    def louder(self: CpuExecutor, batch: StepBatch) -> npt.NDArray[np.float32]:
        return step(self, batch) * np.float32(1.1 if len(batch.page_table) > 1 else 1)

    monkeypatch.setattr(CpuExecutor, "step", louder)
    failures = verify(tmp_path / "artifact", against=checkpoint).failures
    assert len(failures) == 1 and "logits of its engine differ by" in failures[0]
