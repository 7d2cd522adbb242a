"""A run that is killed and taken up again writes, bit for bit, what it would have written."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from quant.calibration import FileSource
from quant.format.errors import FileFormatError
from quant.layers import LayerLoop
from quant.recipe import Recipe, load_recipe
from quant.resume import resume_directory
from quant.run import quantize_checkpoint
from tests.tiny import tiny_checkpoint

SMALL = ("scheme.group_size=32", "calibration.samples=6", "calibration.tokens=24")
KILLED = """
import os, signal, sys
from pathlib import Path
from quant.calibration import FileSource
from quant.recipe import load_recipe
from quant.run import quantize_checkpoint
import quant.resume, quant.sequence, quant.format.safetensors_writer

model, output, text, where, small = sys.argv[1:6]
if where in ("state", "torn"):
    quant.sequence.STATE_SHARE = float("inf")

def killing(owner, name, after):
    honest, calls = getattr(owner, name), []

    def call(*args, **kwargs):
        calls.append(name)
        if len(calls) > after:
            if where == "torn":
                args = (args[0], args[1], {})
                Path(args[1]).write_bytes(b"torn")
            os.kill(os.getpid(), signal.SIGKILL)
        return honest(*args, **kwargs)

    setattr(owner, name, call)

if where == "layer":
    killing(quant.resume.ResumeStore, "save", 1)
elif where == "state":
    killing(quant.resume.ResumeStore, "save_state", 1)
elif where == "torn":
    killing(quant.resume, "save_arrays", 4)
elif where == "shard":
    killing(quant.format.safetensors_writer.ShardedWriter, "finish", 0)
recipe = load_recipe("w4a16", small.split())
quantize_checkpoint(Path(model), Path(output), recipe, FileSource(Path(text)))
"""


def write_text(directory: Path) -> Path:
    path = directory / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog and runs away " * 200)
    return path


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(directory.iterdir())}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("resume")
    model = tiny_checkpoint(directory / "model", "llama", dtype="bfloat16", layers=4)
    return model, write_text(directory)


def recipe_of(*more: str) -> Recipe:
    return load_recipe("w4a16", [*SMALL, *more])


@pytest.fixture(scope="module")
def uninterrupted(
    parts: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], dict[str, bytes]]:
    """What a run with an algorithm writes; each runs once."""

    @cache
    def written(algorithm: str) -> dict[str, bytes]:
        (model, text), whole = parts, tmp_path_factory.mktemp("whole") / algorithm
        quantize_checkpoint(model, whole, recipe_of(f"algorithm={algorithm}"), FileSource(text))
        return contents(whole)

    return written


@pytest.mark.parametrize("where", ["layer", "state", "torn", "shard"])
@pytest.mark.parametrize("algorithm", ["gptq", "gptaq"])
def test_kill_and_resume(
    tmp_path: Path,
    parts: tuple[Path, Path],
    uninterrupted: Callable[[str], dict[str, bytes]],
    where: str,
    algorithm: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, text = parts
    output, small = tmp_path / "out", (*SMALL, f"algorithm={algorithm}")
    paths = [str(path) for path in (model, output, text)]
    command = [sys.executable, "-c", KILLED, *paths, where, " ".join(small)]
    killed = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not output.exists()
    rounds = counted(monkeypatch)
    recipe = recipe_of(f"algorithm={algorithm}")
    quantize_checkpoint(model, output, recipe, FileSource(text), resume=True)
    assert rounds() == {"layer": 3, "state": 3, "torn": 2, "shard": 0}[where]
    assert contents(output) == uninterrupted(algorithm)
    assert not resume_directory(output).exists()


def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many layers are rounded from now on."""
    calls: list[int] = []
    honest = LayerLoop.round_layer

    def round_layer(self: LayerLoop, index: int) -> object:
        calls.append(index)
        return honest(self, index)

    monkeypatch.setattr(LayerLoop, "round_layer", round_layer)
    return lambda: len(calls)


def interrupt_after(
    monkeypatch: pytest.MonkeyPatch, layers: int, model: Path, output: Path, text: Path
) -> None:
    """A run that ends as some layers are done."""
    honest = LayerLoop.round_layer

    def round_layer(self: LayerLoop, index: int) -> object:
        if index == layers:
            raise KeyboardInterrupt
        return honest(self, index)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LayerLoop, "round_layer", round_layer)
        quantize_checkpoint(model, output, recipe_of(), FileSource(text))


def test_a_changed_recipe_redoes_what_depends_on_it(
    tmp_path: Path, parts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Layer 2 gets other numbers: layers 0 and 1 are taken over, by way of their stored numbers."""
    model, text = parts
    output = tmp_path / "out"
    interrupt_after(monkeypatch, 3, model, output, text)
    other = recipe_of(
        "overrides=[{pattern: '*.layers.2.*', scheme: {num_bits: 8, group_size: 32}}]"
    )
    rounds = counted(monkeypatch)
    quantize_checkpoint(model, output, other, FileSource(text), resume=True)
    assert rounds() == 2
    whole = tmp_path / "whole"
    quantize_checkpoint(model, whole, other, FileSource(text))
    assert contents(output) == contents(whole)


def test_without_resume_nothing_old_is_used(
    tmp_path: Path, parts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, text = parts
    output = tmp_path / "out"
    interrupt_after(monkeypatch, 3, model, output, text)
    assert resume_directory(output).is_dir()
    rounds = counted(monkeypatch)
    quantize_checkpoint(model, output, recipe_of(), FileSource(text))
    assert rounds() == 4


def test_other_text_redoes_everything(
    tmp_path: Path, parts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, text = parts
    output, other = tmp_path / "out", tmp_path / "other.txt"
    other.write_text(text.read_text().replace("fox", "cat"))
    interrupt_after(monkeypatch, 3, model, output, text)
    rounds = counted(monkeypatch)
    quantize_checkpoint(model, output, recipe_of(), FileSource(other), resume=True)
    assert rounds() == 4


def test_a_damaged_layer_is_named(
    tmp_path: Path, parts: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, text = parts
    output = tmp_path / "out"
    interrupt_after(monkeypatch, 2, model, output, text)
    (damaged,) = resume_directory(output).glob("layer-00001-*")
    damaged.write_bytes(damaged.read_bytes()[:100])
    with pytest.raises(FileFormatError, match=r"layer-00001.*delete it and run again"):
        quantize_checkpoint(model, output, recipe_of(), FileSource(text), resume=True)
    damaged.unlink()
    quantize_checkpoint(model, output, recipe_of(), FileSource(text), resume=True)
    assert (output / "model.safetensors").is_file()
