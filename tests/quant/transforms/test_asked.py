"""What a plan says of transforms, before any weight is read."""

from pathlib import Path

import pytest

from quant.format.errors import RecipeError, UnsupportedModelError
from quant.preflight import plan_quantization
from quant.recipe import load_recipe
from quant.transforms.asked import layer_transforms
from quant.transforms.settings import (
    AwqSettings,
    BalanceSettings,
    LayerTransforms,
    SmoothQuantSettings,
)
from tests.quant.transforms.families import random_model
from tests.tiny import tiny_checkpoint, tiny_config

ALONE = "balance=null"
"""Shipped recipes balance."""


def test_blocks_of_a_recipe_become_settings() -> None:
    config = tiny_config("qwen3", head_dim=32)
    assert layer_transforms(load_recipe("w4a16", [ALONE]), config) is None
    balanced = layer_transforms(load_recipe("w4a16", ["balance.tokens=99"]), config)
    assert balanced == LayerTransforms("qwen3", 32, balance=BalanceSettings(99))
    asked = [ALONE, "awq.clip=true", "awq.formula=both", "smoothquant.alpha=auto"]
    got = layer_transforms(load_recipe("w4a16", asked), config)
    awq = AwqSettings(formula="both", clip=True)
    assert got == LayerTransforms("qwen3", 32, awq, SmoothQuantSettings(None))
    plain = layer_transforms(load_recipe("w4a16", [ALONE, "awq={}"]), {**config, "head_dim": None})
    assert plain == LayerTransforms("qwen3", 16, AwqSettings())


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("awq.ratio=3", r"unknown key 'awq.ratio'; did you mean 'awq.ratios'"),
        ("smoothquant.alpha=1.5", "alpha"),
        ("rotation.seed=-1", "rotation.seed"),
    ],
)
def test_wrong_settings_are_refused(asked: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        load_recipe("w4a16", [asked])


def test_transforms_of_activations_need_calibration_even_for_nearest_rounding() -> None:
    assert not load_recipe("rtn-w4a16").needs_calibration
    assert not load_recipe("rtn-w4a16", ["rotation={}"]).needs_calibration
    assert load_recipe("rtn-w4a16", ["awq={}"]).needs_calibration
    assert load_recipe("rtn-w4a16", ["smoothquant={}"]).needs_calibration


def test_the_plan_names_what_is_scaled(tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path, "qwen2")
    plan = plan_quantization(model, load_recipe("w4a16", [ALONE, "awq={}"]))
    scaled = {t.name for t in plan.tensors if "scaled by awq" in t.reason}
    layer = "model.layers.0."
    assert f"{layer}input_layernorm.weight" in scaled
    assert f"{layer}self_attn.v_proj.bias" in scaled
    assert f"{layer}self_attn.q_proj.bias" not in scaled
    assert "model.norm.weight" not in scaled
    assert any("scaled by awq" in note for note in plan.notes)
    balanced = plan_quantization(model, load_recipe("w4a16"))
    assert scaled == {t.name for t in balanced.tensors if "scaled by balance" in t.reason}
    smooth = plan_quantization(model, load_recipe("w4a16", [ALONE, "smoothquant={}"]))
    scaled = {t.name for t in smooth.tensors if "scaled by smoothquant" in t.reason}
    assert f"{layer}self_attn.v_proj.bias" not in scaled
    assert f"{layer}post_attention_layernorm.weight" in scaled


def test_a_rotation_plans_the_head_that_it_unties(tmp_path: Path) -> None:
    model = tiny_checkpoint(tmp_path, "llama", tied=True)
    plain = plan_quantization(model, load_recipe("w4a16"))
    plan = plan_quantization(model, load_recipe("w4a16", ["rotation={}"]))
    names = {t.name for t in plan.tensors}
    assert names - {t.name for t in plain.tensors} == {"lm_head.weight"}
    assert plan.total_bytes - plain.total_bytes == 384 * 64 * 2
    assert plan.source_bytes == plain.source_bytes
    assert any("lm_head.weight is written" in note for note in plan.notes)


def test_families_without_known_fold_points_are_refused_in_the_plan(tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(
        "olmo2",
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        vocab_size=32,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    for asked in ("awq={}", "smoothquant={}", "rotation={}"):
        with pytest.raises(UnsupportedModelError, match="'olmo2' has no known places"):
            plan_quantization(tmp_path, load_recipe("w4a16", [asked]))


def test_a_sandwiched_family_cannot_be_rotated_but_scaled(tmp_path: Path) -> None:
    random_model("gemma3_text").save_pretrained(tmp_path)
    assert plan_quantization(tmp_path, load_recipe("w4a16", ["awq={}"])).notes
    with pytest.raises(UnsupportedModelError, match="cannot be rotated"):
        plan_quantization(tmp_path, load_recipe("w4a16", ["rotation={}"]))
