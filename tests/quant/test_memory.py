"""What a run holds in memory, and what it puts into files instead."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quant.activations import empty_activations
from quant.calibration import FileSource
from quant.format.errors import InputError
from quant.format.safetensors_writer import ShardedWriter
from quant.layers import LayerLoop
from quant.preflight import prepare
from quant.recipe import load_recipe
from quant.resume import resume_directory
from quant.run import quantize_checkpoint
from tests.tiny import TEXT, tiny_checkpoint, tiny_config, tiny_shapes, write_json

SMALL = ("calibration.samples=5", "calibration.tokens=24", "scheme.group_size=32")
MEASURED = """
import json, sys
from pathlib import Path
from quant.preflight import prepare
from quant.recipe import load_recipe
from quant.run import quantize_checkpoint

def status(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name + ":"))

model, output, text = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[4]
recipe = load_recipe("w4a16", json.loads(sys.argv[5]))
quantize_checkpoint(Path(sys.argv[3]), output.with_name("warm"), recipe, text)
plan = prepare(model, recipe).plan
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
before = status("VmHWM")
quantize_checkpoint(model, output, recipe, text)
print(json.dumps([status("VmHWM") - before, plan.peak_memory_bytes, plan.source_bytes]))
"""


NEAREST = ("algorithm=rtn", "scales=range", "balance=null")
CALIBRATED = ("calibration.samples=8", "calibration.tokens=32")


def wide_checkpoint(directory: Path, layers: int, hidden_size: int) -> Path:
    """Many layers of the same random numbers, quickly made."""
    config = tiny_config(
        "llama",
        hidden_size=hidden_size,
        intermediate=3 * hidden_size,
        layers=layers,
        tied=True,
        max_positions=64,
    )
    directory.mkdir()
    write_json(directory / "config.json", config)
    random = np.random.default_rng(0)
    made: dict[tuple[int, ...], Any] = {}
    with ShardedWriter(directory, 50 << 20) as writer:
        for name, shape in tiny_shapes(config).items():
            if shape not in made:
                values = random.standard_normal(shape, np.float32)
                made[shape] = (values.view(np.uint32) >> 16).astype(np.uint16).view("bfloat16")
            writer.add(name, made[shape])
    return directory


@pytest.mark.parametrize(
    ("overrides", "hidden_size", "times"), [(NEAREST, 512, 3.0), (CALIBRATED, 256, 1.25)]
)
def test_one_layer_at_a_time(
    tmp_path: Path, text: Path, overrides: tuple[str, ...], hidden_size: int, times: float
) -> None:
    """A model of several times what it takes; the allowance is what the plan says."""
    model = wide_checkpoint(tmp_path / "model", 36, hidden_size)
    warm = tiny_checkpoint(tmp_path / "small", "llama", hidden_size=64)
    for path in warm.glob("*token*"):
        shutil.copy(path, model / path.name)
    arguments = [model, tmp_path / "out", warm, text, json.dumps(overrides)]
    run = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, arguments)],
        # Freed memory goes back at once: what malloc keeps for later is not what a run needs.
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    held, allowance, source = json.loads(run.stdout)
    assert source > times * allowance, f"{source / 2**20:.1f} MiB, of {allowance / 2**20:.1f}"
    assert 0 < held <= allowance, f"{held / 2**20:.1f} MiB, allowed are {allowance / 2**20:.1f}"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "t.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    "more", [("embeddings.group_size=32",), ("algorithm=gptaq",), ("algorithm=qronos",)]
)
def test_activations_in_a_file_give_the_same_bytes(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch, more: tuple[str, ...]
) -> None:
    """Also when the run is taken up from activations that were kept."""
    monkeypatch.setattr("quant.sequence.STATE_SHARE", float("inf"))
    model = tiny_checkpoint(tmp_path / "model", "llama")
    plain, spooled = (
        load_recipe("w4a16", [*SMALL, *more, *extra])
        for extra in ((), ("calibration.carried_mib=0",))
    )
    assert prepare(model, plain).plan.spooled_bytes == 0
    plan = prepare(model, spooled).plan
    assert plan.spooled_bytes == (1 if "embeddings.group_size=32" in more else 2) * 5 * 24 * 64 * 2
    assert (
        plan.peak_memory_bytes == prepare(model, plain).plan.peak_memory_bytes - plan.spooled_bytes
    )
    quantize_checkpoint(model, tmp_path / "plain", plain, FileSource(text))
    honest, seen = LayerLoop.round_layer, []

    def dying(self: LayerLoop, index: int) -> Any:
        seen.append(resume_directory(tmp_path / "out").exists())
        if index == 1 and len(seen) == 2:
            raise KeyboardInterrupt
        return honest(self, index)

    monkeypatch.setattr(LayerLoop, "round_layer", dying)
    with pytest.raises(KeyboardInterrupt):
        quantize_checkpoint(model, tmp_path / "out", spooled, FileSource(text))
    kept = sorted(path.name[:5] for path in resume_directory(tmp_path / "out").iterdir())
    assert kept == ["layer", "state"], "files of activations have no names"
    quantize_checkpoint(model, tmp_path / "out", spooled, FileSource(text), resume=True)
    assert seen == [True, True, True]
    written = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert written == (tmp_path / "plain" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_tensor_in_a_file_is_like_any_other(tmp_path: Path, dtype: torch.dtype) -> None:
    made = empty_activations((3, 5, 7), dtype, tmp_path / "new")
    assert (made.shape, made.dtype) == ((3, 5, 7), dtype)
    values = torch.arange(105.0).reshape(3, 5, 7).to(dtype)
    torch.split(made, 2)[1].copy_(values[2:])
    made[:2] = values[:2]
    assert torch.equal(made, values)
    assert list((tmp_path / "new").iterdir()) == []


def test_a_full_disk_is_known_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(InputError, match="disk is full"):
        empty_activations((2, 2), torch.float32, tmp_path)
