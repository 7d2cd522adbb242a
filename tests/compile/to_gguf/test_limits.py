"""What llama.cpp takes for granted: refused where a model differs, written where a key tells."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compile.families import build_program
from compile.model import Model
from compile.to_gguf import GgufPlan, plan_model
from compile.to_gguf.metadata import model_keys
from quant.format.errors import UnsupportedModelError
from quant.format.scheme import IntScheme, PerGroup
from quant.format.tensor import Weight
from tests.tiny import (
    LONGROPE,
    TinySource,
    round_to_nearest,
    tiny_config,
    tiny_tensors,
    write_tokenizer,
)

LINEAR = {"rope_type": "linear", "factor": 8.0}


def plan(
    folder: Path, family: str, weights: Mapping[str, Weight] | None = None, **options: Any
) -> GgufPlan:
    write_tokenizer(folder)
    config = tiny_config(family, **options)
    source = TinySource({**tiny_tensors(config), **(weights or {})})
    program = build_program(config, source.scheme, source.weights.__contains__)
    return plan_model(Model(folder, "huggingface", program, source, config, folder, None))


def keys(folder: Path, family: str, **options: Any) -> dict[str, Any]:
    """Of the header, without the architecture's name."""
    made = plan(folder, family, **options)
    given = (made.program, made.architecture, made.model.config, "name", 0)
    found, _ = model_keys(*given)
    return {key.removeprefix(f"{made.architecture.name}."): value for key, value in found.items()}


TIED: dict[str, Any] = {"tied": True}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "activation": ("llama", {"hidden_act": "gelu_pytorch_tanh"}, "computes llama models with silu"),
    "own scale": ("gemma2", TIED | {"query_pre_attn_scalar": 40}, "1 / sqrt(16), not by 0.158114"),
    "scale of the largest": ("gemma3_text", TIED | {"layers": 62, "heads": 2, "head_dim": 16},
                             "models of 62 layers by 1 / sqrt(32)"),
    "no caps": ("gemma2", TIED | {"final_logit_softcapping": None}, "always caps the scores"),
    "no caps of scores": ("gemma2", TIED | {"attn_logit_softcapping": None}, "always caps"),
    "own head": ("gemma2", {"tied": False}, "llama.cpp multiplies by the token table in gemma2"),
    "bias": ("gemma3_text", TIED | {"bias": True}, "no such bias in gemma3"),
    "dense layers": ("qwen3_moe", {"mlp_only_layers": [1]},
                     "runs every layer of qwen3moe models with experts as a mixture"),
    "plain shares": ("qwen3_moe", {"norm_topk_prob": False}, "'norm_topk_prob'"),
    "yarn beside windows": ("gemma3_text",
                            TIED | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
                            "'yarn'; it knows linear there"),
    "scaled windows": ("gemma3_text", TIED | {"rope_parameters": {"sliding_attention": LINEAR}},
                       "does not scale the rotation of layers with a window"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_run_differently_is_refused(case: str, tmp_path: Path) -> None:
    family, options, message = REFUSED[case]
    with pytest.raises(UnsupportedModelError) as caught:
        plan(tmp_path, family, **options)
    assert message in str(caught.value)


def test_experts_of_a_layer_lie_in_one_tensor_of_one_type(tmp_path: Path) -> None:
    made = plan(tmp_path, "mixtral")
    rows = {row.tensor: row for row in made.rows}
    up = rows["blk.1.ffn_up_exps.weight"]
    assert up.shape == (4, 128, 64)
    block = "model.layers.1.block_sparse_moe"
    assert up.sources == tuple(f"{block}.experts.{number}.w3.weight" for number in range(4))
    assert rows["blk.1.ffn_gate_inp.weight"].type.name == "F32"
    name = f"{block}.experts.2.w1.weight"
    rounded = round_to_nearest(np.ones((128, 64), np.float32), IntScheme(4, True, PerGroup(32)))
    with pytest.raises(UnsupportedModelError, match="the experts of a layer in one type") as caught:
        plan(tmp_path, "mixtral", {name: rounded})
    assert name in str(caught.value)


def test_the_largest_gemmas_are_scaled_as_llama_cpp_knows(tmp_path: Path) -> None:
    options: dict[str, Any] = {"layers": 46, "heads": 2, "head_dim": 16}
    made = plan(tmp_path, "gemma2", **TIED, **options, query_pre_attn_scalar=32)
    assert made.architecture.name == "gemma2"


def test_windows_are_told_layer_by_layer_where_they_are_not_the_usual(tmp_path: Path) -> None:
    usual = keys(tmp_path, "gemma2", **TIED, layers=3)
    assert usual["attention.sliding_window"] == 7
    assert "attention.sliding_window_pattern" not in usual
    own = keys(tmp_path, "gemma3_text", **TIED, layers=3)
    np.testing.assert_array_equal(own["attention.sliding_window_pattern"], [1, 0, 1])
    none = keys(tmp_path, "gemma2", **TIED, layer_types=["full_attention"] * 2)
    np.testing.assert_array_equal(none["attention.sliding_window_pattern"], [0, 0])
    assert "attention.sliding_window" not in none


def test_both_rotations_of_gemma3_have_a_key(tmp_path: Path) -> None:
    found = keys(tmp_path, "gemma3_text", **TIED, rope_scaling=LINEAR)
    assert (found["rope.freq_base"], found["rope.freq_base_swa"]) == (10_000.0, 100.0)
    assert (found["rope.scaling.type"], found["rope.scaling.factor"]) == ("linear", 8.0)


def test_longrope_travels_whole_though_half_of_it_is_served(tmp_path: Path) -> None:
    found = keys(tmp_path, "phi3", rope_scaling=LONGROPE)
    assert (found["context_length"], found["rope.scaling.original_context_length"]) == (256, 64)
    assert (found["rope.dimension_count"], found["attention.key_length"]) == (12, 16)
    expected = np.sqrt(1 + np.log(256 / 64) / np.log(64))
    assert found["rope.scaling.attn_factor"] == pytest.approx(expected, rel=1e-6)
    tensors = plan(tmp_path, "phi3", rope_scaling=LONGROPE).rope_factors
    assert {name: values.tolist() for name, values in tensors.items()} == {
        "rope_factors_long.weight": np.array(LONGROPE["long_factor"], np.float32).tolist(),
        "rope_factors_short.weight": np.array(LONGROPE["short_factor"], np.float32).tolist(),
    }


def test_windows_that_llama_cpp_ignores_end_the_context(tmp_path: Path) -> None:
    made = plan(tmp_path, "phi3", sliding_window=32)
    assert any("ignores the sliding window of 32 tokens" in note for note in made.notes)
    assert keys(tmp_path, "phi3", sliding_window=32)["context_length"] == 32
    vain = keys(tmp_path, "phi3", sliding_window=300, rope_scaling=LONGROPE)
    assert vain["context_length"] == 256
