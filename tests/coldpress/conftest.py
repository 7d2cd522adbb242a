"""Tiny models that answer nonsense, quickly, and a text for them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coldpress.cli import run
from tests.tiny import TEXT, tiny_checkpoint

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What baselines predicted is not kept beyond a test."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setattr("coldpress.baseline_cache.cache_directory", lambda: folder)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float checkpoint."""
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def tiny_gguf(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same, built: an artifact directory."""
    artifact = tmp_path_factory.mktemp("built") / "artifact"
    assert run(["build", str(tiny), "-o", str(artifact), "--target", "gguf:q8_0"]) == 0
    return artifact


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT * 3, encoding="utf-8")
    return path


@pytest.fixture
def run_json(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command with --json; returns the one object on stdout, checks the exit code."""

    def call(*args: object, code: int = 0) -> Any:
        capsys.readouterr()
        assert run([*map(str, args), "--json"]) == code
        out = capsys.readouterr().out
        assert out.count("\n") == 1 and out.endswith("\n")
        return json.loads(out)

    return call
