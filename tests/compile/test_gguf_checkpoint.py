"""GGUF files as the Hugging Face checkpoints that they were built from."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from compile.families.rope import SCALINGS
from compile.gguf_checkpoint import gguf_checkpoint
from compile.gguf_to_config import huggingface_config
from compile.open_model import checkpoint_model, open_model
from compile.same_program import program_differences
from compile.to_gguf import build_gguf
from quant.format.checkpoint import open_checkpoint
from quant.format.errors import FileFormatError
from quant.format.scheme import IntScheme, PerGroup
from quant.format.tensor import QuantizedTensor
from quant.skeleton import build_skeleton
from tests.compile.test_from_gguf import SHAPES, write
from tests.tiny import GEMMAS, LLAMA3, LONGROPE, YARN, tiny_checkpoint, write_json

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tied": True}),
    "llama-biases": ("llama", {"bias": True, "head_dim": 32}),
    "llama3": ("llama", {"rope_scaling": LLAMA3}),
    "linear": ("llama", {"rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    "mistral": ("mistral", {}),
    "qwen2": ("qwen2", {"rope_scaling": YARN}),
    "qwen3": ("qwen3", {"head_dim": 32}),
    "gemma2": ("gemma2", {"tied": True}),
    "gemma3": ("gemma3_text", {"tied": True, "layers": 7, "sliding_window_pattern": 6}),
    "phi3": ("phi3", {}),
    "longrope": ("phi3", {"rope_scaling": LONGROPE}),
    "mixtral": ("mixtral", {}),
    "qwen3_moe": ("qwen3_moe", {}),
}
TOLD_IN_OTHER_WORDS = {
    *("architectures", "model_type", "rope_parameters", "layer_types"),
    *("hidden_act", "hidden_activation", "sliding_window_pattern", "head_dim"),
}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("case", FAMILIES)
def test_a_file_is_the_checkpoint_that_it_was_built_from(
    case: str, dtype: str, tmp_path: Path
) -> None:
    family, options = FAMILIES[case]
    original = tiny_checkpoint(tmp_path / "model", family, dtype=dtype, **options)
    build_gguf(original, tmp_path / "model.gguf")
    found, expected = gguf_checkpoint(tmp_path / "model.gguf", tmp_path), open_checkpoint(original)
    assert found.quant_method is None and found.notes == ()
    assert set(found.names()) == set(expected.names())
    for name in expected.names():
        theirs, ours = expected.load(name), found.load(name)
        assert not isinstance(theirs, QuantizedTensor) and not isinstance(ours, QuantizedTensor)
        assert found.shape(name) == ours.shape == theirs.shape, name
        assert found.scheme(name) == expected.scheme(name), name
        assert ours.dtype == theirs.dtype
        if family in GEMMAS and dtype == "float32" and name.endswith("norm.weight"):
            # The file holds the sum with one, which rounds away what lies below float32 there.
            theirs, ours = theirs + np.float32(1), ours + np.float32(1)
        assert ours.tobytes() == theirs.tobytes(), name
    for key in expected.config.keys() & found.config.keys() - TOLD_IN_OTHER_WORDS:
        assert found.config[key] == expected.config[key], key
    reference = open_model(original).program
    assert program_differences(reference, checkpoint_model(found).program) == []
    assert "embedding_scale" not in found.config, "transformers does not know it"


@pytest.mark.parametrize("case", FAMILIES)
def test_transformers_builds_the_same_module(case: str, tmp_path: Path) -> None:
    """Its own reading of both configs: parameters, their shapes, and the rotary frequencies."""
    torch = pytest.importorskip("torch")
    family, options = FAMILIES[case]
    original = tiny_checkpoint(tmp_path / "model", family, **options)
    build_gguf(original, tmp_path / "model.gguf")
    again = tmp_path / "again"
    again.mkdir()
    found = gguf_checkpoint(tmp_path / "model.gguf", again)
    write_json(again / "config.json", found.config)
    theirs = build_skeleton(original, open_checkpoint(original).config)
    ours = build_skeleton(again, found.config)
    assert ours.expected_tensors() == theirs.expected_tensors()
    assert set(ours.expected_tensors()) <= set(found.names())
    buffers = dict(ours.model.named_buffers())
    compared = 0
    for name, values in theirs.model.named_buffers():
        if values.device.type != "meta" and "inv_freq" in name:
            assert torch.allclose(values, buffers[name], rtol=1e-6, atol=0), name
            compared += 1
    assert compared > 0
    for key in ("layer_types", "query_pre_attn_scalar", "attn_logit_softcapping"):
        if hasattr(theirs.model.config, key):
            assert getattr(ours.model.config, key) == getattr(theirs.model.config, key), key


@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_quantized_matrices_keep_their_integers(family: str, tmp_path: Path) -> None:
    scheme = IntScheme(4, False, PerGroup(32))
    original = tiny_checkpoint(tmp_path / "model", family, scheme=scheme, dtype="float16")
    build_gguf(original, tmp_path / "model.gguf")
    found, expected = gguf_checkpoint(tmp_path / "model.gguf", tmp_path), open_checkpoint(original)
    assert found.quant_method == "ggml"
    quantized = 0
    for name in expected.names():
        theirs, ours = expected.load(name), found.load(name)
        if isinstance(theirs, QuantizedTensor):
            assert isinstance(ours, QuantizedTensor)
            assert np.allclose(ours.dequantize(), theirs.dequantize(), rtol=2**-9, atol=2**-9)
            quantized += 1
    assert quantized == 2 * 7
    reader = open_model(tmp_path / "model.gguf").weights
    for name in expected.names():
        ours, read = found.load(name), reader.load(name)
        if isinstance(ours, QuantizedTensor):
            assert isinstance(read, QuantizedTensor)
            assert np.array_equal(ours.dequantize(), read.dequantize()), name


def test_gemma_keeps_a_scale_that_only_the_file_tells(tmp_path: Path) -> None:
    """One rounded to bfloat16, in a file of float32."""
    original = tiny_checkpoint(tmp_path / "model", "gemma2", tied=True, hidden_size=96)
    build_gguf(original, tmp_path / "model.gguf", "f32")
    found = gguf_checkpoint(tmp_path / "model.gguf", tmp_path)
    assert found.config["dtype"] == "float32"
    assert found.config["embedding_scale"] == pytest.approx(96**0.5, rel=2**-8)
    reference = open_model(original).program
    assert program_differences(reference, checkpoint_model(found).program) == []


def test_a_type_that_no_checkpoint_holds_is_dequantized_and_told(tmp_path: Path) -> None:
    write(tmp_path / "model.gguf", types={"blk.0.ffn_up.weight": "IQ2_XS"})
    found = gguf_checkpoint(tmp_path / "model.gguf", tmp_path)
    name = "model.layers.0.mlp.up_proj.weight"
    assert found.quant_method == "ggml", "it has been rounded before"
    (note,) = found.notes
    assert note.startswith("1 tensors of type IQ2_XS") and note.endswith("rounded to float32")
    read = open_model(tmp_path / "model.gguf").weights.load(name)
    assert not isinstance(read, QuantizedTensor)
    assert np.array_equal(found.load_raw(name), read) and found.config["dtype"] == "float32"


def test_nvfp4_keeps_its_factor(tmp_path: Path) -> None:
    """Blocks in a checkpoint have no number beside them."""
    name = "model.layers.0.mlp.up_proj.weight"
    for factor, method in ((1.0, "blocks"), (0.5, "floats")):
        path = tmp_path / f"{method}.gguf"
        extra = {"blk.0.ffn_up.scale": np.array([factor], np.float32)}
        write(path, types={"blk.0.ffn_up.weight": "NVFP4"}, extra=extra)
        found = gguf_checkpoint(path, tmp_path)
        weight, read = found.load(name), open_model(path).weights.load(name)
        assert isinstance(read, QuantizedTensor) and found.quant_method == "ggml"
        assert isinstance(weight, QuantizedTensor) == (method == "blocks")
        values = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
        assert np.array_equal(values, read.dequantize())
        assert bool(found.notes) == (method == "floats")


def test_factors_that_are_not_llama_s_survive(tmp_path: Path) -> None:
    """They become two equal lists, and one tensor of GGUF again."""
    factors = np.array([1, 3, 2, 5, 4, 8, 6, 9] * 4, np.float32)
    write(tmp_path / "model.gguf", extra={"rope_freqs.weight": factors})
    found = gguf_checkpoint(tmp_path / "model.gguf", tmp_path)
    assert found.config["rope_parameters"]["rope_type"] == "longrope"
    reference = open_model(tmp_path / "model.gguf").program
    model = checkpoint_model(found)
    assert program_differences(reference, model.program) == []
    assert model.program.sizes.max_positions == 128


def test_llama_3_is_recognised_by_its_factors() -> None:
    """As published: 8 (Llama 3.1, heads of 128) and 32 (Llama 3.2, heads of 64)."""
    for factor, dimension in ((8.0, 128), (32.0, 64)):
        published = {"rope_type": "llama3", "factor": factor, "low_freq_factor": 1.0}
        published |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
        divisors, _ = SCALINGS["llama3"](published, 500_000.0, dimension)
        assert divisors is not None
        stored = [float(np.float32(divisor)) for divisor in divisors]
        rope = {"rope_type": "factors", "rope_theta": 500_000.0, "factors": stored}
        config = {"model_type": "llama", "rope_parameters": rope, "max_position_embeddings": 131072}
        found = huggingface_config(config, {}, "bfloat16")["rope_parameters"]
        assert found == published | {"rope_theta": 500_000.0}


def test_numbers_that_the_type_cannot_hold_are_refused(tmp_path: Path) -> None:
    """What an NVFP4 matrix is multiplied by carries it beyond float16, the token table's type."""
    types = {name: "Q8_0" for name, shape in SHAPES.items() if len(shape) == 2}
    types |= {"token_embd.weight": "F16", "blk.0.ffn_up.weight": "NVFP4"}
    extra = {"blk.0.ffn_up.scale": np.array([1e30], np.float32)}
    write(tmp_path / "model.gguf", types=types, extra=extra)
    found = gguf_checkpoint(tmp_path / "model.gguf", tmp_path)
    assert found.config["dtype"] == "float16"
    with pytest.raises(FileFormatError, match=r"up_proj\.weight' has numbers that float16 cannot"):
        found.load("model.layers.0.mlp.up_proj.weight")
