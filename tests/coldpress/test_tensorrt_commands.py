"""The command line over TensorRT artifacts, on a machine without a GPU."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from coldpress.cli import run
from compile.engine_file import ENGINE_FILE, read_facts
from compile.onnx_contract import DATA_FILE, GRAPH_FILE
from quant.format.scheme import IntScheme, PerGroup
from runtime.executors.tensorrt import cuda
from tests.tiny import tiny_checkpoint

pytest.importorskip("tensorrt_rtx", reason="the extra 'tensorrt' is not installed")

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a checkpoint and its engine for sm89."""
    directory = tmp_path_factory.mktemp("tensorrt")
    tiny_checkpoint(directory / "model", scheme=IntScheme(4, False, PerGroup(32)))
    out = str(directory / "out")
    assert run(["build", str(directory / "model"), "-o", out, "--target", "tensorrt:sm89"]) == 0
    return directory


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "LIBRARY", "libcuda-that-is-not-there.so")


def told(capsys: Capture, *args: str) -> dict[str, Any]:
    capsys.readouterr()
    assert run(["--json", *args]) == 0
    value: dict[str, Any] = json.loads(capsys.readouterr().out)
    return value


def test_inspect_shows_what_the_engine_was_built_for(made: Path, capsys: Capture) -> None:
    found = told(capsys, "inspect", str(made / "out"))
    assert found["kind"] == "tensorrt"
    assert found["bytes"] == (made / "out" / ENGINE_FILE).stat().st_size
    engine = found["manifest"]["engine"]
    assert engine["cards"] == ["sm89"] and engine["builder"] == "tensorrt_rtx"
    assert engine["profile"]["T"] == [1, 16, 256]


def test_verify_compares_integers_and_says_what_was_not_run(made: Path, capsys: Capture) -> None:
    found = told(capsys, "verify", str(made / "out"), "--against", str(made / "model"))
    assert found["passed"] and set(found["counts"]) == {"equal"}
    assert found["logits"]["engines"]["artifact"] == "onnx"
    assert any("the engine was not run" in note for note in found["notes"])
    assert any("nobody can read numbers back" in note for note in found["notes"])


def test_running_it_without_a_gpu_says_what_to_do(made: Path, capsys: Capture) -> None:
    assert run(["run", str(made / "out"), "hello", "--max-tokens", "2"]) == 2
    assert "--backend onnx and --backend cpu serve" in capsys.readouterr().err


def test_an_engine_for_another_gpu_is_made_from_the_artifact(made: Path, capsys: Capture) -> None:
    target = ["--target", "tensorrt:sm120"]
    args = ["build", str(made / "out"), "-o", str(made / "again"), *target]
    again = told(capsys, *args)
    assert again["tensors_by_type"] == {"bfloat16": 7, "int4": 14}
    facts = read_facts(made / "again")
    assert facts.cards == ("sm120",) and facts.target == "tensorrt:sm120"
    for name in (GRAPH_FILE, DATA_FILE, "config.json", "tokenizer.json"):
        assert (made / "again" / name).read_bytes() == (made / "out" / name).read_bytes()
    found = told(capsys, "verify", str(made / "again"), "--against", str(made / "model"))
    assert found["passed"]


def test_a_plan_says_what_would_be_built_and_refuses_what_would_not(
    made: Path, capsys: Capture
) -> None:
    found = told(capsys, "plan", str(made / "model"), "--target", "tensorrt:sm89")
    types = {tensor["tensor"]: tensor["type"] for tensor in found["tensors"]}
    assert types["model.layers.0.mlp.up_proj.weight"] == "int4"
    assert any("the engine holds the same types" in note for note in found["notes"])
    assert run(["plan", str(made / "model"), "--target", "tensorrt:sm75"]) == 2
    assert "sm75 (Turing" in capsys.readouterr().err


def test_an_engine_for_this_machine_needs_its_package_and_its_gpu(
    made: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["build", str(made / "model"), "-o", str(tmp_path / "out"), "--target", "tensorrt"]
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert run(args) == 2
    assert "coldpress[tensorrt-full]" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "tensorrt", sys.modules["tensorrt_rtx"])
    assert run(args) == 2
    assert "there is no NVIDIA GPU here" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
