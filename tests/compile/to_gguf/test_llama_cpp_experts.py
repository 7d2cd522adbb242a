"""The mixes of models with experts, beside llama.cpp's own quantizer: the same type everywhere."""

from pathlib import Path

import numpy as np
import pytest

from quant.format.ggml_mix import ModelFacts, file_type, mix_type
from quant.format.gguf_file import GgufFile
from quant.format.gguf_types import F32
from quant.format.gguf_writer import GgufLayout, TensorSlot, gguf_writer

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
from tests.compile.to_gguf.test_llama_cpp_mixes import quantized_by_llama_cpp

pytestmark = pytest.mark.filterwarnings("ignore")

LAYERS, HEADS, VOCAB = 8, 8, 64
MODELS = {
    "eight": (256, 256, 8, 2, False),
    "eight-narrow-tied": (96, 256, 8, 2, True),
    "eight-ungrouped": (256, 96, 8, 8, False),
    "four": (256, 256, 4, 2, False),
}
"""hidden_size, intermediate size, experts, key heads, tied."""
Tensors = dict[str, tuple[str | None, tuple[int, ...]]]


def tensors_of(hidden: int, middle: int, experts: int, kv_heads: int, tied: bool) -> Tensors:
    """GGUF's name: Hugging Face's module (None: a vector or a router) and shape."""
    narrow = hidden // HEADS * kv_heads
    found: Tensors = {"token_embd": ("model.embed_tokens", (VOCAB, hidden))}
    found["output_norm"] = (None, (hidden,))
    if not tied:
        found["output"] = ("lm_head", (VOCAB, hidden))
    for layer in range(LAYERS):
        attention, mlp = f"model.layers.{layer}.self_attn.", f"model.layers.{layer}.mlp.experts.0."
        rows: Tensors = {
            "attn_norm": (None, (hidden,)),
            "ffn_norm": (None, (hidden,)),
            "attn_q": (f"{attention}q_proj", (hidden, hidden)),
            "attn_k": (f"{attention}k_proj", (narrow, hidden)),
            "attn_v": (f"{attention}v_proj", (narrow, hidden)),
            "attn_output": (f"{attention}o_proj", (hidden, hidden)),
            "ffn_gate_inp": (None, (experts, hidden)),
            "ffn_gate_exps": (f"{mlp}gate_proj", (experts, middle, hidden)),
            "ffn_up_exps": (f"{mlp}up_proj", (experts, middle, hidden)),
            "ffn_down_exps": (f"{mlp}down_proj", (experts, hidden, middle)),
        }
        found |= {f"blk.{layer}.{name}": row for name, row in rows.items()}
    return {f"{name}.weight": row for name, row in found.items()}


def write_floats(path: Path, tensors: Tensors, experts: int, kv_heads: int) -> None:
    hidden = tensors["output_norm.weight"][1][0]
    middle = tensors["blk.0.ffn_up_exps.weight"][1][1]
    sizes = {
        "block_count": LAYERS,
        "context_length": 64,
        "embedding_length": hidden,
        "feed_forward_length": middle,
        "vocab_size": VOCAB,
        "attention.head_count": HEADS,
        "attention.head_count_kv": kv_heads,
        "expert_count": experts,
        "expert_used_count": 2,
    }
    layout = GgufLayout(
        {"general.architecture": "llama", "tokenizer.ggml.model": "none"}
        | {"llama.attention.layer_norm_rms_epsilon": np.float32(1e-5)}
        | {f"llama.{key}": np.uint32(value) for key, value in sizes.items()},
        [TensorSlot(name, F32, shape) for name, (_, shape) in tensors.items()],
    )
    random = np.random.default_rng(0)
    with gguf_writer(path, layout) as writer:
        for name, (_, shape) in tensors.items():
            values = random.standard_normal(int(np.prod(shape)), np.float32)
            writer.write(name, values.view(np.uint8))


@pytest.mark.parametrize("model", MODELS)
def test_every_tensor_has_the_type_that_llama_cpp_gives_it(model: str, tmp_path: Path) -> None:
    hidden, middle, experts, kv_heads, tied = MODELS[model]
    tensors = tensors_of(hidden, middle, experts, kv_heads, tied)
    write_floats(tmp_path / "f32.gguf", tensors, experts, kv_heads)
    facts = ModelFacts(LAYERS, HEADS // kv_heads, experts, tied)
    for mix in ("Q4_K_M", "Q2_K", "Q3_K_M", "Q3_K_L", "IQ4_XS"):
        theirs = GgufFile(quantized_by_llama_cpp(tmp_path / "f32.gguf", tmp_path / mix, mix))
        assert theirs.metadata["general.file_type"] == file_type(mix)
        for name, (module, shape) in tensors.items():
            expected = "F32" if module is None else str(mix_type(mix, module, shape[-1], facts))
            assert theirs.tensors[name].type.name == expected, (mix, name)
        (tmp_path / mix).unlink()
