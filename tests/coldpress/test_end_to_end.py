"""A tiny model all the way: quantize, build, verify, evaluate, serve, and ask."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import openai
import pytest

import coldpress
from coldpress.cli import run
from coldpress.demo import serving
from compile.manifest import check_files, read_manifest
from compile.open_model import open_model
from quant.format.errors import InputError
from tests.coldpress.conftest import Run
from tests.coldpress.test_llm import WITHOUT_TORCH
from tests.ended import Ending, command_exit_code
from tests.tiny import tiny_checkpoint

SMALL = ["--set", "calibration.samples=4", "--set", "calibration.tokens=32"]


@pytest.fixture(scope="module")
def pressed(
    tiny: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """(int4 checkpoint, GGUF artifact) of the tiny model, through the command line."""
    folder = tmp_path_factory.mktemp("pressed")
    checkpoint, artifact = folder / "int4", folder / "gguf"
    args = ["quantize", tiny, "-o", checkpoint, "--recipe", "w4a16", "--calibration", text_file]
    assert run([*map(str, args), *SMALL, "--set", "scheme.group_size=32"]) == 0
    assert run(["build", str(checkpoint), "-o", str(artifact), "--target", "gguf"]) == 0
    return checkpoint, artifact


def test_manifests_tell_the_story(tiny: Path, pressed: tuple[Path, Path]) -> None:
    checkpoint, artifact = (read_manifest(path) for path in pressed)
    for path, manifest in zip(pressed, (checkpoint, artifact), strict=True):
        assert check_files(path, manifest) == []
    assert checkpoint.recipe is not None and checkpoint.recipe["scheme"]["group_size"] == 32
    assert checkpoint.calibration is not None and len(checkpoint.calibration["sha256"]) == 64
    assert checkpoint.sources[0]["name"] == tiny.name
    assert checkpoint.modules is not None
    states = [module["state"] for module in checkpoint.modules.values()]
    assert states.count("as asked") == 14, "seven linears in each of two layers"
    stored = artifact.parents[0]["files"]
    assert stored["model.safetensors"]["sha256"] == checkpoint.files["model.safetensors"].sha256


def test_every_integer_survives_and_the_distance_is_the_same(
    tiny: Path, pressed: tuple[Path, Path], text_file: Path, run_json: Run
) -> None:
    checkpoint, artifact = pressed
    report = run_json("verify", artifact, "--against", checkpoint)
    assert report["passed"]
    figures = [
        run_json("eval", path, "--text", text_file, "--baseline", tiny, "--window", 64)
        for path in pressed
    ]
    assert figures[0]["kld"]["mean"] > 0
    # Only scales and what stays in 16 bits may be stored with other bits, next to no distance.
    assert figures[1]["kld"]["mean"] == pytest.approx(figures[0]["kld"]["mean"], rel=0.02)


def test_the_api_makes_what_the_commands_make(
    tiny: Path, text_file: Path, pressed: tuple[Path, Path], tmp_path: Path
) -> None:
    settings = {"calibration.samples": 4, "calibration.tokens": 32, "scheme.group_size": 32}
    coldpress.quantize(
        tiny, tmp_path / "int4", recipe="w4a16", overrides=settings, calibration=str(text_file)
    )
    again = (tmp_path / "int4" / "model.safetensors").read_bytes()
    assert again == (pressed[0] / "model.safetensors").read_bytes()
    coldpress.build(tmp_path / "int4", tmp_path / "gguf")
    assert coldpress.verify(tmp_path / "gguf", against=tmp_path / "int4").passed


def test_a_tied_model_calibrates_itself(tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "model", tied=True)
    settings = {"calibration.samples": 4, "calibration.tokens": 32, "scheme.group_size": 32}
    report = coldpress.quantize(model, tmp_path / "int4", recipe="w4a16", overrides=settings)
    assert report["calibration"]["source"] == "self"
    coldpress.build(tmp_path / "int4", tmp_path / "gguf")
    assert coldpress.verify(tmp_path / "gguf", against=tmp_path / "int4").passed


def test_quantize_is_gated(tiny: Path, text_file: Path, tmp_path: Path, run_json: Run) -> None:
    args = ["quantize", tiny, "--recipe", "rtn-w4a16", "--gate-text", text_file]
    value = run_json(*args, "-o", tmp_path / "a", "--gate", "kld<=5")
    assert 0 < value["evaluation"]["kld"]["mean"] < 5
    missed = run_json(*args, "-o", tmp_path / "b", "--gate", "kld<=1e-9", code=1)
    assert missed["evaluation"] == value["evaluation"]
    assert read_manifest(tmp_path / "b").evaluation == value["evaluation"]


def test_plan_quantize_is_what_quantize_makes(
    tiny: Path, pressed: tuple[Path, Path], run_json: Run
) -> None:
    value = run_json("plan", tiny, "--recipe", "w4a16", "--set", "scheme.group_size=32")
    planned = {tensor["name"]: tensor["scheme"] for tensor in value["tensors"]}
    model = open_model(pressed[0])
    assert planned == {name: str(model.weights.scheme(name)) for name in model.weights.names()}


@pytest.fixture(scope="module")
def served(pressed: tuple[Path, Path]) -> Iterator[dict[str, Any]]:
    with serving(pressed[1]) as ready:
        yield ready


def test_the_openai_client_streams_what_the_api_answers(
    served: dict[str, Any], pressed: tuple[Path, Path]
) -> None:
    messages: list[Any] = [{"role": "user", "content": "the press"}]
    with openai.OpenAI(base_url=f"{served['url']}/v1", api_key="none", max_retries=0) as client:
        assert [model.id for model in client.models.list()] == [served["model"]] == ["gguf"]
        ask = client.chat.completions.create
        whole = ask(model="gguf", messages=messages, temperature=0, max_tokens=8)
        stream = ask(model="gguf", messages=messages, temperature=0, max_tokens=8, stream=True)
        parts = [part.choices[0].delta.content or "" for part in stream if part.choices]
    with coldpress.LLM(pressed[1], threads=1) as model:
        answer = model.chat(messages, max_tokens=8)
    assert "".join(parts) == whole.choices[0].message.content == answer.text
    assert whole.usage is not None and whole.usage.prompt_tokens == answer.prompt_tokens


def test_serve_needs_no_torch_and_ends_on_a_signal(pressed: tuple[Path, Path]) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, "--json", "serve", str(pressed[1])]
    process = subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        with openai.OpenAI(base_url=f"{ready['url']}/v1", api_key="none") as client:
            answer = client.completions.create(model=ready["model"], prompt="one", max_tokens=2)
        assert answer.choices[0].finish_reason in ("length", "stop")
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def killed(ending: Ending, *args: str) -> None:
    """`coldpress ARGS` in a process of its own, killed as it calls a function."""
    with TemporaryDirectory() as folder:
        said = Path(folder) / "stderr"
        assert command_exit_code(ending, args, said) == -signal.SIGKILL, said.read_text()


def assert_nothing_loads(folder: Path, output: Path) -> None:
    assert not output.exists()
    for left in folder.iterdir():
        with pytest.raises(InputError):
            open_model(left)


def test_what_a_killed_run_left_is_gone_after_the_next(tiny: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    args = ["quantize", str(tiny), "-o", str(output), "--recipe", "rtn-w4a16"]
    killed(Ending("quant.format.staging", "_move_into_place", 2), *args)
    assert_nothing_loads(tmp_path, output)
    assert run(args) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "what was left is gone"
    assert check_files(output, read_manifest(output)) == []


@pytest.fixture(scope="module")
def calibrated(tiny: Path, text_file: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The arguments of a run that rounds with calibration, but for its output; then that of one."""
    args = ["quantize", str(tiny), "--recipe", "w4a16", "--calibration", str(text_file)]
    args += ["--set", "calibration.samples=2", "--set", "calibration.tokens=32"]
    args += ["--set", "scheme.group_size=32"]
    whole = tmp_path_factory.mktemp("whole") / "out"
    assert run([*args, "-o", str(whole)]) == 0
    return [*args, str(whole)]


@pytest.mark.parametrize(
    "ending",
    [Ending("quant.run", "module_report", 9), Ending("coldpress.pressing", "write_manifest")],
)
def test_a_killed_run_leaves_nothing_that_loads_and_is_taken_up(
    ending: Ending, calibrated: list[str], tmp_path: Path
) -> None:
    *args, whole = calibrated
    output, kept = tmp_path / "out", tmp_path / ".out.resume"
    killed(ending, *args, "-o", str(output))
    assert_nothing_loads(tmp_path, output)
    assert list(kept.glob("layer-*")), "a finished layer outlives the run"
    assert run([*args, "-o", str(output), "--resume"]) == 0
    assert not kept.exists()
    for path in Path(whole).iterdir():
        assert path.read_bytes() == (output / path.name).read_bytes(), path.name


def test_interrupt_while_quantizing_is_130_and_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    output, said = tmp_path / "made" / "out", tmp_path / "stderr"
    args = ["quantize", str(tiny), "-o", str(output), "--recipe", "rtn-w4a16"]
    output.parent.mkdir()
    ending = Ending("quant.run", "module_report", 3, by=signal.SIGINT)
    assert command_exit_code(ending, args, said) == 130, said.read_text()
    assert "Traceback" not in said.read_text()
    assert {path.name for path in output.parent.iterdir()} <= {".out.resume"}, (
        "finished layers alone"
    )
