"""A rotated model is the same model, for every family that can be rotated."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from quant.format.checkpoint import Checkpoint, open_checkpoint
from quant.format.errors import FileFormatError, UnsupportedModelError
from quant.skeleton import to_torch
from quant.transforms.rotated_checkpoint import RotatedCheckpoint
from tests.quant.transforms.families import random_model, random_tokens

ROTATABLE = ["llama", "mistral", "qwen2", "qwen3", "gemma", "phi3", "mixtral", "qwen3_moe"]


def stored(directory: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> Checkpoint:
    from safetensors.torch import save_file

    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config), encoding="utf-8")
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    return open_checkpoint(directory)


def saved(directory: Path, family: str, dtype: torch.dtype = torch.float32, **options: Any) -> Any:
    """A tiny model as its own `save_pretrained` writes it, and the checkpoint that gives."""
    model = random_model(family, dtype, **options)
    model.save_pretrained(directory)
    return model, open_checkpoint(directory)


def logits(source: Checkpoint, directory: Path) -> torch.Tensor:
    """What transformers computes in float64 with the checkpoint's own tensors and config."""
    import transformers

    tensors = {name: to_torch(source.load_raw(name)) for name in source.names()}
    stored(directory, tensors, source.config)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, experts_implementation="eager"
    )
    with torch.no_grad():
        result: torch.Tensor = model.double()(random_tokens()).logits
    return result


@pytest.mark.parametrize("family", ROTATABLE)
def test_logits_stay_and_nothing_is_left_in_its_old_basis(tmp_path: Path, family: str) -> None:
    """Bound: each stored tensor is rounded to float32 once, about 20 of them in a row."""
    _, source = saved(tmp_path / "model", family)
    rotated = RotatedCheckpoint(source, seed=7)
    before = logits(source, tmp_path / "a")
    after = logits(rotated, tmp_path / "b")
    assert float((after - before).abs().max()) <= 100 * torch.finfo(torch.float32).eps
    same = {
        name
        for name in source.names()
        if np.array_equal(rotated.load_raw(name), source.load_raw(name))
    }
    untouched = ("q_norm", "k_norm", "q_proj.bias", "k_proj.bias", "gate_proj.bias", "up_proj.bias")
    assert all(any(part in name for part in untouched) for name in same), same


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tensors_keep_their_type_and_are_rounded_once(tmp_path: Path, dtype: torch.dtype) -> None:
    """Against plain matrices in float64: half a step of the stored type."""
    _, source = saved(tmp_path, "llama", dtype)
    rotated = RotatedCheckpoint(source, seed=0)
    matrix = rotated.residual.columns(np.eye(32))
    prefix = "model.layers.1."

    def load(name: str) -> Any:
        return source.load_raw(name).astype(np.float64)

    gain = load(prefix + "post_attention_layernorm.weight")
    expected = {
        "model.embed_tokens.weight": load("model.embed_tokens.weight") @ matrix,
        "lm_head.weight": load("lm_head.weight") * load("model.norm.weight") @ matrix,
        prefix + "mlp.up_proj.weight": load(prefix + "mlp.up_proj.weight") * gain @ matrix,
        prefix + "mlp.down_proj.weight": matrix.T @ load(prefix + "mlp.down_proj.weight"),
        prefix + "mlp.down_proj.bias": load(prefix + "mlp.down_proj.bias") @ matrix,
        prefix + "mlp.up_proj.bias": load(prefix + "mlp.up_proj.bias"),
        prefix + "post_attention_layernorm.weight": np.ones(32),
    }
    eps = torch.finfo(dtype).eps
    for name, values in expected.items():
        got = rotated.load(name)
        assert isinstance(got, np.ndarray)
        assert got.dtype == source.load_raw(name).dtype
        error = np.abs(got.astype(np.float64) - values)
        assert (error <= eps / 2 * np.abs(values) + 1e-7).all(), name


def test_a_tied_head_becomes_a_tensor_of_its_own(tmp_path: Path) -> None:
    _, source = saved(tmp_path, "qwen3")
    assert "lm_head.weight" not in source.names()
    rotated = RotatedCheckpoint(source, seed=0)
    assert set(rotated.names()) - set(source.names()) == {"lm_head.weight"}
    assert rotated.config["tie_word_embeddings"] is False
    assert source.config["tie_word_embeddings"] is True
    assert rotated.shape("lm_head.weight") == (64, 32)
    assert rotated.scheme("lm_head.weight") == source.scheme("model.embed_tokens.weight")
    assert rotated.stored_bytes("lm_head.weight") == 64 * 32 * 4
    head, table = rotated.load_raw("lm_head.weight"), rotated.load_raw("model.embed_tokens.weight")
    assert not np.allclose(head, table)


def test_a_head_that_is_stored_though_tied_must_be_the_embedding(tmp_path: Path) -> None:
    _, source = saved(tmp_path / "model", "qwen3")
    tensors = {name: to_torch(source.load_raw(name)) for name in source.names()}
    table = tensors["model.embed_tokens.weight"]
    twice = stored(tmp_path / "a", {**tensors, "lm_head.weight": table.clone()}, source.config)
    alone = RotatedCheckpoint(source, seed=0).load_raw("lm_head.weight")
    np.testing.assert_array_equal(RotatedCheckpoint(twice, 0).load_raw("lm_head.weight"), alone)
    other = stored(tmp_path / "b", {**tensors, "lm_head.weight": table + 1}, source.config)
    with pytest.raises(FileFormatError, match=r"'lm_head.weight' differs"):
        RotatedCheckpoint(other, 0).load_raw("lm_head.weight")


def test_seeds_decide_and_the_callers_random_state_is_untouched(tmp_path: Path) -> None:
    _, source = saved(tmp_path, "llama")
    state = np.random.get_state(legacy=False)["state"]["key"].copy()
    torch_state = torch.random.get_rng_state()
    name = "model.layers.0.self_attn.v_proj.weight"
    loads = [RotatedCheckpoint(source, seed).load_raw(name) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(loads[0], loads[1])
    assert not np.allclose(loads[0], loads[2])
    np.testing.assert_array_equal(np.random.get_state(legacy=False)["state"]["key"], state)
    assert torch.equal(torch.random.get_rng_state(), torch_state)


def test_outliers_of_channels_are_spread(tmp_path: Path) -> None:
    """Excess kurtosis, the usual measure: of rows with a few large channels, near 0 after."""
    model, _ = saved(tmp_path / "a", "llama", hidden_size=64, head_dim=16)
    model.model.layers[0].input_layernorm.weight[:3] = 30.0
    model.save_pretrained(tmp_path / "b")
    source = open_checkpoint(tmp_path / "b")
    rotated = RotatedCheckpoint(source, 0)
    gain = source.load_raw("model.layers.0.input_layernorm.weight")
    name = "model.layers.0.self_attn.q_proj.weight"

    def kurtosis(rows: Any) -> float:
        rows = rows / np.sqrt((rows**2).mean(-1, keepdims=True))
        return float((rows**4).mean()) - 3.0

    assert kurtosis(source.load_raw(name) * gain) > 10
    assert kurtosis(rotated.load_raw(name)) < 1


@pytest.mark.parametrize("family", ["gemma2", "gemma3_text"])
def test_families_that_norm_what_they_add_are_refused(tmp_path: Path, family: str) -> None:
    _, source = saved(tmp_path, family)
    with pytest.raises(UnsupportedModelError, match=f"a {family} model cannot be rotated"):
        RotatedCheckpoint(source, 0)


def test_a_tensor_of_unknown_part_is_refused_by_name(tmp_path: Path) -> None:
    _, source = saved(tmp_path / "model", "llama")
    tensors = {name: to_torch(source.load_raw(name)) for name in source.names()}
    name = "model.layers.0.self_attn.gate.weight"
    extra = stored(tmp_path / "a", {**tensors, name: torch.ones(3, 32)}, source.config)
    with pytest.raises(UnsupportedModelError, match=name):
        RotatedCheckpoint(extra, 0)
