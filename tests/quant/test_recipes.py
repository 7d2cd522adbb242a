"""Every shipped recipe, on a small model: what it says is what lies on disk."""

from pathlib import Path

import numpy as np
import pytest

from quant.calibration import FileSource
from quant.format.checkpoint import open_checkpoint
from quant.format.tensor import QuantizedTensor
from quant.preflight import plan_quantization
from quant.recipe import load_recipe, recipe_names
from quant.run import quantize_checkpoint
from tests.tiny import TEXT, tiny_checkpoint


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FileSource]:
    directory = tmp_path_factory.mktemp("recipes")
    text = directory / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    model = tiny_checkpoint(
        directory / "model", dtype="bfloat16", layers=1, hidden_size=128, intermediate=256
    )
    return model, FileSource(text)


@pytest.mark.parametrize("name", recipe_names())
def test_recipe(tmp_path: Path, parts: tuple[Path, FileSource], name: str) -> None:
    model, text = parts
    recipe = load_recipe(name, ["calibration.samples=6", "calibration.tokens=24"])
    plan = plan_quantization(model, recipe)
    report = quantize_checkpoint(model, tmp_path / "out", recipe, text)
    written = open_checkpoint(tmp_path / "out")
    payload = sum(written.stored_bytes(tensor) for tensor in written.names())
    assert payload == plan.total_bytes
    digests = {m.module: m.digest for m in report.modules if m.digest is not None}
    assert digests
    for module, digest in digests.items():
        tensor = written.load(f"{module}.weight")
        assert isinstance(tensor, QuantizedTensor)
        assert tensor.digest() == digest
        assert np.isfinite(tensor.dequantize()).all()
    for entry in report.modules:
        assert entry.state == "as asked" or entry.state.startswith("kept in 16 bit")


def test_names_say_what_they_are_for() -> None:
    """The first line of each file is a comment for people, and `description` one for machines."""
    from importlib.resources import files

    for name in recipe_names():
        text = (files("recipes") / f"{name}.yaml").read_text(encoding="utf-8")
        assert text.startswith("# "), name
        assert load_recipe(name).description, name
