"""Names and row order: Hugging Face on one side, GGUF on the other.

Name table: github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/tensor_mapping.py.
"""

import re
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quant.format.tensor import QuantizedTensor, Weight

ROPE_FACTORS = "rope_freqs.weight"
EMBEDDINGS = "token_embd.weight"
HEAD = "output.weight"

_MODULES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_LAYER_MODULES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_HF_MODULES = {gguf: hf for hf, gguf in _MODULES.items()}
_HF_LAYER_MODULES = {gguf: hf for hf, gguf in _LAYER_MODULES.items()}


@dataclass(frozen=True)
class Architecture:
    """What a GGUF architecture string stands for.

    interleaved_rope: llama.cpp rotates neighbouring elements (2i, 2i + 1), so that the rows of q
        and k are re-ordered per head. rope_factors: it reads the tensor rope_freqs.weight.
    """

    name: str
    interleaved_rope: bool = False
    rope_factors: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False


_LLAMA = Architecture("llama", True, True, attention_bias=True, mlp_bias=True)
ARCHITECTURES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Architecture("qwen2", attention_bias=True),
    "qwen3": Architecture("qwen3"),
}
"""By Hugging Face model_type."""


def gguf_name(name: str) -> str | None:
    """`model.layers.0.self_attn.q_proj.weight` -> `blk.0.attn_q.weight`; None when unknown."""
    module, _, kind = name.rpartition(".")
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
    found = _MODULES.get(module)
    if layer is not None and layer[2] in _LAYER_MODULES:
        found = f"blk.{layer[1]}.{_LAYER_MODULES[layer[2]]}"
    return None if found is None or kind not in ("weight", "bias") else f"{found}.{kind}"


def hugging_face_name(name: str) -> str | None:
    """The inverse of `gguf_name`."""
    module, _, kind = name.rpartition(".")
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", module)
    found = _HF_MODULES.get(module)
    if layer is not None and layer[2] in _HF_LAYER_MODULES:
        found = f"model.layers.{layer[1]}.{_HF_LAYER_MODULES[layer[2]]}"
    return None if found is None or kind not in ("weight", "bias") else f"{found}.{kind}"


def rope_heads(hf_name: str, heads: int, kv_heads: int) -> int | None:
    """Heads whose rows an interleaved architecture re-orders in this tensor; None if it is kept."""
    if ".self_attn.q_proj." in hf_name:
        return heads
    if ".self_attn.k_proj." in hf_name:
        return kv_heads
    return None


def interleaved_order(rows: int, heads: int) -> npt.NDArray[np.intp]:
    """Row i of the GGUF tensor is row order[i] of the Hugging Face one: per head, the first and
    the second half take turns."""
    return np.arange(rows).reshape(heads, 2, -1).swapaxes(1, 2).reshape(-1)


def halves_order(rows: int, heads: int) -> npt.NDArray[np.intp]:
    """The inverse of `interleaved_order`."""
    return np.arange(rows).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


def take_rows(weight: Weight, order: npt.NDArray[np.intp]) -> Weight:
    """Rows of a weight, or elements of a bias, in another order."""
    return weight.take_rows(order) if isinstance(weight, QuantizedTensor) else weight[order]
