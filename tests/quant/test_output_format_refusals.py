"""What a format of checkpoint cannot hold is known from headers, and said with the fix."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quant.format.errors import RecipeError
from quant.format.safetensors_file import SafetensorsFile
from quant.preflight import plan_quantization
from quant.recipe import Recipe, load_recipe
from quant.run import quantize_checkpoint
from tests.tiny import tiny_checkpoint

OTHERS = ("gptq", "gptq_v2", "awq")

REFUSALS: list[tuple[str, dict[str, Any], list[str], str]] = [
    ("awq", {}, ["scheme.num_bits=8"], "4 bits, not 8: set scheme.num_bits=4"),
    ("awq", {}, ["scheme.group_size=channel"], "set scheme.group_size"),
    ("awq", {"heads": 1, "kv_heads": 1, "head_dim": 4}, [], "4 outputs are not a multiple of 8"),
    ("gptq", {"intermediate": 100}, [], "100 outputs of 4 bits do not fill whole words"),
    ("gptq", {"intermediate": 104}, [], "down_proj: .*q_proj is int4-sym-g64: make them alike"),
    ("gptq_v2", {}, ["ignore=['*.down_proj']"], "ignore none"),
    ("awq", {"intermediate": 40}, [], "down_proj.*one scale per row"),
    ("fp8", {}, [], "8-bit floats: set scheme.type=fp8"),
    ("gptq", {}, ["scheme={type: mxfp4}"], "GPTQ files hold integers: set scheme.type=int"),
    ("awq", {}, ["scheme.activations=int8"], "set scheme.activations=none"),
]


@pytest.mark.parametrize(("name", "shape", "options", "sentence"), REFUSALS)
def test_what_a_format_cannot_hold_is_refused_before_a_weight_is_read(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    shape: dict[str, Any],
    options: list[str],
    sentence: str,
) -> None:
    model = tiny_checkpoint(tmp_path / "model", **shape)
    refuse_reading(monkeypatch)
    recipe = load_recipe("rtn-w4a16", [*options, f"format={name}"])
    for act in (lambda: plan_quantization(model, recipe), _quantize(model, tmp_path, recipe)):
        with pytest.raises(RecipeError, match=sentence) as raised:
            act()
        assert str(raised.value).startswith("model.layers.0.")
        assert f": format '{name}' cannot hold it as " in str(raised.value)
        assert str(raised.value).endswith("or choose format=compressed-tensors")
    assert not (tmp_path / "out").exists()


def _quantize(model: Path, folder: Path, recipe: Recipe) -> Callable[[], object]:
    return lambda: quantize_checkpoint(model, folder / "out", recipe)


def refuse_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(SafetensorsFile, "load", refuse)


@pytest.mark.parametrize("name", OTHERS)
def test_one_scheme_for_all(tmp_path: Path, name: str) -> None:
    model = tiny_checkpoint(tmp_path / "model")
    down = "{pattern: '*.down_proj', scheme: {symmetric: false}}"
    recipe = load_recipe("rtn-w4a16", [f"format={name}", f"overrides=[{down}]"])
    with pytest.raises(RecipeError, match=r"down_proj: .*q_proj is int4-sym-g64: make them alike"):
        plan_quantization(model, recipe)


def test_an_unknown_format_is_refused_with_the_known_ones() -> None:
    with pytest.raises(RecipeError, match=r"'format' is 'onnx'.*gptq_v2"):
        load_recipe("w4a16", ["format=onnx"])


def test_blocks_that_no_reader_of_one_format_takes(tmp_path: Path) -> None:
    """All linears are named at once, with what to do."""
    model = tiny_checkpoint(tmp_path / "model", hidden_size=192, intermediate=256)
    recipe = load_recipe("fp8-block", ["format=fp8"])
    with pytest.raises(RecipeError) as caught:
        plan_quantization(model, recipe)
    named = "*.q_proj, *.k_proj, *.v_proj, *.o_proj, *.gate_proj, *.up_proj, *.down_proj"
    assert named in str(caught.value)
    assert "by 'ignore', or choose format=compressed-tensors" in str(caught.value)
