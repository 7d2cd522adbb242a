"""Schemes of small floats and rounded inputs from a recipe to a file that others read."""

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from quant.format.checkpoint import open_checkpoint
from quant.format.codebooks import LARGEST
from quant.format.safetensors_file import SafetensorsFile
from quant.format.scheme import CodebookScheme
from quant.format.tensor import QuantizedTensor
from quant.preflight import plan_quantization
from quant.recipe import Recipe, load_recipe
from quant.run import quantize_checkpoint
from tests.tiny import TEXT, tiny_checkpoint

HALF_GAP = {"e4m3": 16.0, "e2m1": 1.0}
"""Half the widest step of a codebook, that at its largest number."""
ROUNDED_SCALE = 2.0**-8
"""A scale rounded down in 16 bits clips what is largest by this share."""
CASES = {
    "w8a8": "{num_bits: 8, group_size: channel, activations: int8}",
    "w8a8-static": "{num_bits: 8, group_size: channel, activations: int8-static}",
    "w4a8": "{num_bits: 4, group_size: 32, activations: int8}",
    "fp8-dynamic": "{type: fp8, group_size: channel, activations: fp8}",
    "fp8-static": "{type: fp8, group_size: tensor, activations: fp8-static}",
    "fp8-block": "{type: fp8, group_size: block, activations: fp8}",
    "nvfp4": "{type: nvfp4, activations: same}",
    "mxfp4": "{type: mxfp4, activations: same}",
    "mxfp8": "{type: mxfp8, activations: same}",
    "hf-block": "{type: fp8, group_size: block, activations: fp8}",
    "hf-static": "{type: fp8, group_size: tensor, activations: fp8-static}",
}


def press(model: Path, out: Path, name: str, *overrides: str) -> None:
    """Round to nearest; static inputs are observed on a text."""
    text = out.parent / "text.txt"
    text.write_text(TEXT, encoding="utf-8")
    quantize_checkpoint(model, out, recipe_of(name, *overrides), str(text))


def recipe_of(name: str, *overrides: str) -> Recipe:
    target = "fp8" if name.startswith("hf") else "compressed-tensors"
    small = ("calibration.samples=4", "calibration.tokens=24", "scales=range")
    scheme = f"scheme={CASES[name]}"
    return load_recipe("rtn-w4a16", [scheme, f"format={target}", *small, *overrides])


@pytest.mark.filterwarnings("ignore:.*FP8 quantized models requires.*")
@pytest.mark.parametrize("name", CASES)
def test_planned_written_read_and_loaded(tmp_path: Path, name: str) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = tiny_checkpoint(tmp_path / "model", hidden_size=128, intermediate=256)
    plan = plan_quantization(model, recipe_of(name))
    press(model, tmp_path / "out", name)
    written, original = open_checkpoint(tmp_path / "out"), open_checkpoint(model)
    assert {t.name: (t.scheme, t.bytes) for t in plan.tensors} == {
        n: (str(written.scheme(n)), written.stored_bytes(n)) for n in written.names()
    }
    stored = SafetensorsFile(tmp_path / "out" / "model.safetensors").tensors
    assert plan.total_bytes == sum(info.num_bytes for info in stored.values())
    # It rounds float scales of compressed-tensors to the type that it loads in; products with
    # scales of one byte, and all of fine-grained FP8, come in bfloat16.
    wide = not name.startswith(("nvfp4", "mxfp", "hf"))
    dtype = torch.float32 if wide else torch.bfloat16
    loaded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=dtype)
    assert bool(torch.isfinite(loaded(torch.tensor([[1, 2, 3]])).logits).all())
    weights, quantized = dict(loaded.named_parameters()), 0
    for tensor in written.names():
        weight = written.load(tensor)
        if isinstance(weight, QuantizedTensor):
            quantized += 1
            ours = torch.from_numpy(weight.dequantize()).to(dtype)
            assert bool((weights[tensor] == ours).all()), tensor
            assert_near(weight, original.load_raw(tensor).astype(np.float32))
    assert quantized == 2 * 7


def assert_near(weight: QuantizedTensor, original: npt.NDArray[np.float32]) -> None:
    """Where nothing is clipped on purpose, each element lost half a step at most."""
    scheme = weight.scheme
    if isinstance(scheme, CodebookScheme):
        half, largest = HALF_GAP[scheme.codebook], LARGEST[scheme.codebook]
    else:
        half, largest = 0.5, float(-scheme.qmin)
    steps = np.abs(weight.dequantize() - original)
    steps /= np.abs(weight.effective_scale()[:, weight.column_groups()])
    assert steps.max() <= half + largest * ROUNDED_SCALE


def test_blocks_hold_the_same_codes_in_both_formats(tmp_path: Path) -> None:
    """A float32 model: scales are float32 in both. k_proj and v_proj are whole blocks as well."""
    model = tiny_checkpoint(
        tmp_path / "model", hidden_size=128, intermediate=256, kv_heads=4, dtype="float32"
    )
    for name in ("fp8-block", "hf-block"):
        press(model, tmp_path / name, name, "scales=search")
    one, other = open_checkpoint(tmp_path / "fp8-block"), open_checkpoint(tmp_path / "hf-block")
    assert (one.quant_method, other.quant_method) == ("compressed-tensors", "fp8")
    for name in one.names():
        ours, theirs = one.load(name), other.load(name)
        if isinstance(ours, QuantizedTensor) and isinstance(theirs, QuantizedTensor):
            assert (ours.scheme, ours.digest()) == (theirs.scheme, theirs.digest())
            np.testing.assert_array_equal(ours.scale, theirs.scale)
        else:
            assert one.scheme(name) == other.scheme(name)
    config = json.loads((tmp_path / "hf-block" / "config.json").read_text())
    assert config["quantization_config"]["weight_block_size"] == [128, 128]
