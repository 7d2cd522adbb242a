"""`--kv-cache-type` reaches the executor of every command that has it."""

from pathlib import Path
from typing import Any

import pytest

from coldpress import LLM
from coldpress.cli import run
from coldpress.loading import Machine
from runtime.executors.cpu import CpuExecutor
from tests.coldpress.conftest import Run


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the cache of each executor is held in."""
    types: list[str] = []
    init = CpuExecutor.__init__

    def noted(self: CpuExecutor, *args: Any, **options: Any) -> None:
        types.append(options["cache"])
        init(self, *args, **options)

    monkeypatch.setattr(CpuExecutor, "__init__", noted)
    return types


def test_eval_rounds_the_candidate_and_never_the_baseline(
    tiny: Path, text_file: Path, run_json: Run, made: list[str]
) -> None:
    args = ["eval", tiny, "--baseline", tiny, "--text", text_file, "--window", 64, "--no-cache"]
    assert run_json(*args)["kld"]["mean"] == 0
    rounded = run_json(*args, "--kv-cache-type", "int8")["kld"]["mean"]
    halves = run_json(*args, "--kv-cache-type", "float16")["kld"]["mean"]
    assert 0 < halves < rounded < 1e-3
    assert sorted(made) == ["float16", *["float32"] * 4, "int8"]


def test_bench_run_and_verify_take_it_too(
    tiny: Path, tiny_gguf: Path, run_json: Run, made: list[str]
) -> None:
    short = ["--concurrency", 1, "--prompt-tokens", 4, "--output-tokens", 2]
    run_json("bench", tiny, *short, "--kv-cache-type", "int8")
    run_json("run", tiny, "hello", "--max-tokens", 2, "--kv-cache-type", "int8")
    report = run_json("verify", tiny_gguf, "--against", tiny, "--kv-cache-type", "int8")
    assert report["passed"] and set(made) == {"int8"} and len(made) >= 4


def test_run_takes_inputs_as_they_are_when_asked(
    tiny: Path, run_json: Run, made: list[str]
) -> None:
    run_json("run", tiny, "hello", "--max-tokens", 2, "--activations", "float32")
    with LLM(tiny):
        pass
    assert made == ["float32", "bfloat16"]


def test_a_type_that_does_not_exist_is_named(tiny: Path) -> None:
    assert run(["run", str(tiny), "hello", "--kv-cache-type", "int4"]) == 2
    assert Machine.of("auto", None, "int8").kv_cache_type == "auto"
