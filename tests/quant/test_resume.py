"""A run that is killed and taken up again writes, bit for bit, what it would have written."""

import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

import quant.sequence
from quant.calibration import FileSource
from quant.format.errors import FileFormatError
from quant.layers import LayerLoop
from quant.recipe import Recipe, load_recipe
from quant.resume import resume_directory
from quant.run import quantize_checkpoint
from tests.ended import Ending, exit_code
from tests.tiny import tiny_checkpoint

SMALL = ("scheme.group_size=32", "calibration.samples=6", "calibration.tokens=24")
ENDINGS = {
    "layer": Ending("quant.resume", "ResumeStore.save", 2),
    "state": Ending("quant.resume", "ResumeStore.save_state", 2),
    "torn": Ending("quant.resume", "save_arrays", 5, torn=True),
    "shard": Ending("quant.format.safetensors_writer", "ShardedWriter.finish"),
}
"""Where a run is killed; `save_arrays` writes a layer and its state in turn."""


def quantize_until(where: str, model: Path, output: Path, text: Path, recipe: Recipe) -> None:
    """In a process of its own."""
    if where in ("state", "torn"):
        quant.sequence.STATE_SHARE = float("inf")
    ENDINGS[where].prepare()
    quantize_checkpoint(model, output, recipe, FileSource(text))


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


@pytest.mark.parametrize("where", ENDINGS)
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
    output, recipe = tmp_path / "out", recipe_of(f"algorithm={algorithm}")
    killed = exit_code(quantize_until, where, model, output, text, recipe)
    assert killed == -signal.SIGKILL
    assert not output.exists()
    rounds = counted(monkeypatch)
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
