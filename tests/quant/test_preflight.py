"""Preflight: everything that can fail without reading a weight, fails here."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file, save_file

from quant.format.checkpoint import open_checkpoint
from quant.format.errors import InputError, RecipeError, UnsupportedModelError
from quant.format.safetensors_file import SafetensorsFile
from quant.memory import samples_per_batch
from quant.preflight import plan_quantization, prepare
from quant.recipe import CalibrationSpec, load_recipe
from quant.run import quantize_checkpoint
from tests.tiny import tiny_checkpoint

RTN = load_recipe("rtn-w4a16")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return tiny_checkpoint(tmp_path / "model")


def edit_config(model: Path, **changes: Any) -> None:
    path = model / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(model: Path, change: Callable[[dict[str, Any]], None]) -> None:
    tensors = load_file(model / "model.safetensors")
    change(tensors)
    save_file(tensors, model / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("recipe", ["rtn-w4a16", "rtn-w4a16-asym", "w8a16"])
@pytest.mark.parametrize("tied", [True, False])
def test_the_plan_is_what_gets_written(tmp_path: Path, recipe: str, tied: bool) -> None:
    model = tiny_checkpoint(tmp_path / "model", "qwen2", tied=tied)
    plan = plan_quantization(model, load_recipe(recipe))
    quantize_checkpoint(model, tmp_path / "out", load_recipe(recipe))
    written = open_checkpoint(tmp_path / "out")
    assert {t.name for t in plan.tensors} == set(written.names())
    for tensor in plan.tensors:
        assert tensor.shape == written.shape(tensor.name)
        assert tensor.scheme == str(written.scheme(tensor.name))
        assert tensor.bytes == written.stored_bytes(tensor.name)
        assert tensor.reason
    stored = SafetensorsFile(tmp_path / "out" / "model.safetensors").tensors
    assert plan.total_bytes == sum(info.num_bytes for info in stored.values())
    assert plan.source_bytes == sum(2 * math.prod(t.shape) for t in plan.tensors)


def test_planning_reads_no_weight(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a weight was read")

    monkeypatch.setattr(SafetensorsFile, "load", refuse)
    plan_quantization(model, load_recipe("w4a16"))


def test_a_quantized_model_is_refused_by_name(model: Path, tmp_path: Path) -> None:
    quantize_checkpoint(model, tmp_path / "once", RTN)
    with pytest.raises(UnsupportedModelError, match=r"already quantized \(compressed-tensors\)"):
        quantize_checkpoint(tmp_path / "once", tmp_path / "twice", RTN)
    assert not (tmp_path / "twice").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"model_type": "no_such_model"}, "model_type 'no_such_model'"),
        ({"auto_map": {"AutoModel": "x.py"}}, "auto_map"),
        ({"dtype": "int8"}, "dtype 'int8'"),
        ({"num_hidden_layers": 3}, "'model.layers.2.self_attn.q_proj.weight' is missing"),
        ({"num_hidden_layers": 1}, "'model.layers.1.input_layernorm.weight' has no place"),
        ({"intermediate_size": 96}, r"has shape \[128, 64\] where config.json says \[96, 64\]"),
        ({"hidden_size": "many"}, "model_type 'llama' is not a decoder"),
    ],
)
def test_a_config_that_does_not_fit_is_refused(
    model: Path, changes: dict[str, Any], sentence: str
) -> None:
    edit_config(model, **changes)
    with pytest.raises(InputError, match=sentence):
        plan_quantization(model, RTN)


def test_an_encoder_is_refused(model: Path) -> None:
    edit_config(model, model_type="t5", architectures=["T5ForConditionalGeneration"])
    with pytest.raises(UnsupportedModelError, match="model_type 't5'"):
        plan_quantization(model, RTN)


def test_missing_files_are_named(model: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="absent"):
        plan_quantization(tmp_path / "absent", RTN)
    (model / "model.safetensors").unlink()
    with pytest.raises(InputError, match="holds no weights"):
        plan_quantization(model, RTN)


def test_an_unknown_tensor_is_refused_not_dropped(model: Path) -> None:
    def add(tensors: dict[str, Any]) -> None:
        tensors["model.extra.weight"] = tensors["model.norm.weight"]

    edit_tensors(model, add)
    with pytest.raises(UnsupportedModelError, match=r"'model.extra.weight' has no place"):
        plan_quantization(model, RTN)


def test_a_second_copy_of_a_tied_table_is_left_out_and_told(tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path / "model", tied=True)

    def copy(tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()

    edit_tensors(model, copy)
    report = quantize_checkpoint(model, tmp_path / "out", RTN)
    assert any(note.startswith("lm_head.weight is left out") for note in report.notes)
    assert "lm_head.weight" not in open_checkpoint(tmp_path / "out").names()

    def differ(tensors: dict[str, Any]) -> None:
        tensors["lm_head.weight"] = tensors["lm_head.weight"] * 2

    edit_tensors(model, differ)
    with pytest.raises(InputError, match=r"'lm_head.weight' differs"):
        quantize_checkpoint(model, tmp_path / "other", RTN)
    assert not (tmp_path / "other").exists()


def test_a_pattern_that_matches_nothing_fails_first(model: Path, tmp_path: Path) -> None:
    recipe = load_recipe("rtn-w4a16", ["targets=['*.w_proj']"])
    with pytest.raises(RecipeError, match="matches no linear"):
        quantize_checkpoint(model, tmp_path / "out", recipe)


def test_a_full_disk_is_seen_before_the_work(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quant.format.staging.free_bytes", lambda _: 1000)
    with pytest.raises(InputError, match="1,000 free"):
        quantize_checkpoint(model, tmp_path / "out", RTN)


def test_an_occupied_output_is_refused(model: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious").write_text("x")
    with pytest.raises(InputError, match="already exists"):
        quantize_checkpoint(model, tmp_path / "out", RTN)
    assert (tmp_path / "out" / "precious").read_text() == "x"


def test_batches_follow_from_the_recipe_alone(model: Path) -> None:
    skeleton = prepare(model, RTN).skeleton
    small = CalibrationSpec(memory_mib=1, tokens=128)
    large = CalibrationSpec(memory_mib=2, tokens=128)
    assert 1 <= samples_per_batch(skeleton, small) < samples_per_batch(skeleton, large)
    assert samples_per_batch(skeleton, CalibrationSpec(memory_mib=1, tokens=100_000)) == 1


def test_calibration_is_part_of_the_memory_estimate(model: Path) -> None:
    def peak(recipe: str, *overrides: str) -> int:
        return plan_quantization(model, load_recipe(recipe, overrides)).peak_memory_bytes

    few = peak("w4a16", "calibration.samples=8")
    many = peak("w4a16", "calibration.samples=64")
    # 56 samples of 512 tokens, carried as they enter and as they leave: 64 bfloat16 numbers each.
    assert many - few >= 56 * 512 * 64 * 2 * 2
    assert peak("rtn-w4a16") < few
