"""Models are told apart by name; what was scored before a reader failed stays."""

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import served_quality
from benchmarks.quality.scores import Estimate, Summary
from benchmarks.served_quality import main, markdown, read


def test_a_model_is_a_python_a_reader_and_a_path(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'ours=python' is not NAME=PYTHON READER PATH"):
        read("ours", ["python"], tmp_path, 1)


def test_the_table_has_a_row_for_each() -> None:
    found = {"ours": Summary(20.0, Estimate(0.1, 0.01), 0.875, 2048)}
    assert markdown(found).splitlines()[2:] == ["| ours | 20.000 | 0.1000 +- 0.0100 | 87.5 % |"]


def test_a_reader_that_fails_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(served_quality, "prepare", lambda args: args.output.mkdir())

    def run(command: list[str]) -> None:
        if command[2].endswith("read_vllm"):
            raise ValueError("read_vllm ended with 1")
        np.save(Path(command[3]) / "scores.npy", np.full((2, 3, 5), 0.5))

    monkeypatch.setattr(served_quality, "run", run)
    models = [f"{name}={sys.executable} read_{name} m" for name in ("coldpress", "vllm")]
    given = [word for model in models for word in ("--model", model)]
    out = tmp_path / "out"
    assert main(["model", "text", "-o", str(out), *given]) == 2
    assert "read_vllm ended with 1" in capsys.readouterr().err
    assert "coldpress | 1.649 | 0.5000" in (out / "served_quality.md").read_text()
