"""Opening models: what is served, and the sentence that each wrong path gets."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from compile.open_model import open_model
from compile.same_program import program_differences
from compile.to_gguf.build import build_gguf
from quant.format.errors import InputError, UnsupportedModelError
from quant.format.staging import staged_directory
from tests.tiny import tiny_checkpoint, tiny_tensors


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_weights(directory: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    tensors = load_file(directory / "model.safetensors")
    edit(tensors)
    save_file(tensors, directory / "model.safetensors")


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_hugging_face_directory(family: str, tmp_path: Path) -> None:
    model = open_model(tiny_checkpoint(tmp_path, family, tied=family == "qwen3"))
    assert (model.kind, model.directory, model.gguf_metadata) == ("huggingface", tmp_path, None)
    assert model.program.family == family
    assert model.program.tied_embeddings == (family == "qwen3")
    assert set(model.program.weights()) == set(model.weights.names())
    expected = tiny_tensors(model.config)
    for name in model.weights.names():
        loaded = model.weights.load(name)
        assert isinstance(loaded, np.ndarray)
        np.testing.assert_array_equal(loaded, expected[name])


def test_harmless_buffers_are_ignored(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, dtype="float32")
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit_weights(tmp_path, lambda tensors: tensors.update({name: np.ones(8, np.float32)}))
    assert name not in open_model(tmp_path).program.weights()


def test_a_stored_head_wins_over_a_tied_config_and_is_noted(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path)
    edit_config(tmp_path, tie_word_embeddings=True)
    model = open_model(tmp_path)
    assert not model.program.tied_embeddings
    assert "lm_head.weight" in model.notes[0]


def test_missing_unused_and_misshapen_tensors_are_listed_together(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path, dtype="float32")

    def spoil(tensors: dict[str, Any]) -> None:
        del tensors["model.norm.weight"]
        tensors["model.layers.1.mlp.router.weight"] = np.ones((4, 64), np.float32)
        tensors["model.layers.0.self_attn.q_proj.weight"] = np.ones((64, 32), np.float32)

    edit_weights(tmp_path, spoil)
    with pytest.raises(UnsupportedModelError) as caught:
        open_model(tmp_path)
    message = str(caught.value)
    assert str(tmp_path) in message
    assert "missing: model.norm.weight" in message
    assert "not used by this model: model.layers.1.mlp.router.weight" in message
    assert "q_proj.weight is [64, 32] instead of [64, 64]" in message


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model_type": "mamba"}, "'mamba' is not supported; supported: llama"),
        ({"model_type": None}, "model_type None is not supported"),
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"num_key_value_heads": 3}, "not a multiple of 'num_key_value_heads', 3"),
        ({"num_attention_heads": 0}, "'num_attention_heads' of the model's config must be"),
        ({"hidden_size": 64.0}, "'hidden_size' of the model's config must be a whole number"),
        ({"num_hidden_layers": 10**9}, "'num_hidden_layers'"),
        ({"vocab_size": None}, "has no 'vocab_size'"),
        ({"rms_norm_eps": -1}, "'rms_norm_eps'"),
        ({"tie_word_embeddings": "yes"}, "'tie_word_embeddings'"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope_type 'dynamic'"),
        ({"rope_scaling": {"type": "linear"}}, "'factor'"),
        ({"rope_scaling": "linear"}, "not a table"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"rope_parameters": {"rope_theta": float("nan")}}, "'rope_theta'"),
        ({"head_dim": 15}, "'head_dim'"),
        ({"auto_map": {"AutoModel": "code.Model"}}, "auto_map"),
    ],
)
def test_a_bad_config_names_its_key(changes: dict[str, Any], says: str, tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(InputError) as caught:
        open_model(tmp_path)
    assert says in str(caught.value)
    assert str(tmp_path) in str(caught.value)


def test_paths_that_are_no_model(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no model")
    (tmp_path / "two").mkdir()
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / "two" / name).write_bytes(b"GGUF")
    for path, says in (
        (tmp_path / "nothing", "no such file"),
        (tmp_path / "notes.txt", "neither a .gguf file nor a directory"),
        (tmp_path, "neither a config.json nor a .gguf file"),
        (tmp_path / "two", "several GGUF files (a.gguf, b.gguf)"),
    ):
        with pytest.raises(InputError, match=r".*") as caught:
            open_model(path)
        assert says in str(caught.value)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_gguf_file_alone_or_in_its_directory(family: str, tmp_path: Path) -> None:
    source = tiny_checkpoint(tmp_path / "source", family, tied=family == "llama")
    artifact = tmp_path / "artifact"
    artifact.mkdir()
    payload = artifact / "model.gguf"
    build_gguf(source, payload)
    (artifact / "config.json").write_text("{}")
    bare, inside, original = open_model(payload), open_model(artifact), open_model(source)
    assert (bare.kind, bare.path, bare.directory) == ("gguf", payload, None)
    assert (inside.kind, inside.path, inside.directory) == ("gguf", artifact, artifact)
    assert bare.gguf_metadata is not None
    assert bare.gguf_metadata["general.architecture"] == family
    assert program_differences(original.program, bare.program) == []
    assert bare.program.tied_embeddings == inside.program.tied_embeddings == (family == "llama")
    assert set(bare.weights.names()) == set(original.weights.names())


def test_a_truncated_gguf_file_is_refused(tmp_path: Path) -> None:
    payload = tmp_path / "model.gguf"
    build_gguf(tiny_checkpoint(tmp_path / "source"), payload)
    whole = payload.read_bytes()
    for length in (0, 3, 100, len(whole) // 2, len(whole) - 1):
        payload.write_bytes(whole[:length])
        with pytest.raises(InputError, match=r"model\.gguf"):
            open_model(payload)


def test_what_an_interrupted_run_left_is_refused(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "model")
    with pytest.raises(RuntimeError), staged_directory(tmp_path / "out") as staging:
        tiny_checkpoint(staging)
        with pytest.raises(InputError, match="interrupted"):
            open_model(staging)
        raise RuntimeError


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(InputError, match="pickle"):
        open_model(tmp_path)
