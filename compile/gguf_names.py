"""Names and row order: Hugging Face on one side, GGUF on the other.

Name table: github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/tensor_mapping.py.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from quant.format.experts import EXPERT_NAMES, ExpertNames
from quant.format.tensor import QuantizedTensor, Weight

ROPE_FACTORS = "rope_freqs.weight"
SHORT_FACTORS, LONG_FACTORS = "rope_factors_short.weight", "rope_factors_long.weight"
FACTOR = ".scale"
"""Ends the name of what an NVFP4 tensor is multiplied by, in place of `.weight`."""
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
_SANDWICH = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_STACKED = {"gate": "ffn_gate_exps", "up": "ffn_up_exps", "down": "ffn_down_exps"}
"""Matrices of all experts of a layer in one tensor [experts, out, in]."""
ROUTER = "ffn_gate_inp"
_FUSED = {"self_attn.qkv_proj": "attn_qkv", "mlp.gate_up_proj": "ffn_up"}


@dataclass(frozen=True)
class Architecture:
    """What a GGUF architecture string stands for.

    interleaved_rope: llama.cpp rotates neighbouring elements (2i, 2i + 1), so that the rows of q
        and k are re-ordered per head. rope_factors: it reads the tensor rope_freqs.weight.
    longrope: it reads rope_factors_short.weight and rope_factors_long.weight, and takes the long
        ones where its context is longer than rope.scaling.original_context_length.
    renamed: modules of a layer that have other names than in most architectures.
    norm_offset: is added to the weights of norms before they are stored.
    window_period: it knows windows, which all layers but each such one have unless the file tells;
        None: it ignores them. local_rope: layers with a window have a rotation of their own.
    softcaps: "both" are always there, "logits" may have one. scaled_embeddings: by the square root
        of their width. own_head: a head beside the token table is read.
    large_layers: with so many layers, attention is scaled by the root of hidden_size / heads.
    experts: every layer is a mixture of them, named like this on the side of Hugging Face.
    """

    name: str
    interleaved_rope: bool = False
    rope_factors: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    longrope: bool = False
    renamed: Mapping[str, str] = field(default_factory=dict)
    activation: Literal["silu", "gelu_tanh"] = "silu"
    norm_offset: float = 0.0
    window_period: int | None = None
    local_rope: bool = False
    softcaps: Literal["none", "logits", "both"] = "none"
    scaled_embeddings: bool = False
    own_head: bool = True
    large_layers: int | None = None
    experts: ExpertNames | None = None

    @property
    def layer_modules(self) -> dict[str, str]:
        """GGUF's name of each module of a layer."""
        taken = set(self.renamed.values())
        common = {hf: gguf for hf, gguf in _LAYER_MODULES.items() if gguf not in taken}
        routers = {f"{self.experts.block}.gate": ROUTER} if self.experts else {}
        return common | dict(self.renamed) | routers

    def query_scalar(self, layers: int, hidden: int, heads: int, head_dim: int) -> float:
        """Attention's scores are multiplied by its inverse square root: no key tells it."""
        return hidden // heads if layers == self.large_layers else head_dim


_LLAMA = Architecture("llama", True, True, attention_bias=True, mlp_bias=True)
_GEMMA2 = Architecture(
    "gemma2",
    renamed=_SANDWICH,
    activation="gelu_tanh",
    norm_offset=1.0,
    window_period=2,
    softcaps="both",
    scaled_embeddings=True,
    own_head=False,
    large_layers=46,
)
ARCHITECTURES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": Architecture("qwen2", attention_bias=True),
    "qwen3": Architecture("qwen3"),
    "gemma2": _GEMMA2,
    "gemma3_text": replace(
        _GEMMA2,
        name="gemma3",
        window_period=6,
        local_rope=True,
        softcaps="logits",
        own_head=True,
        large_layers=62,
    ),
    "phi3": Architecture("phi3", longrope=True, renamed=_FUSED),
    "mixtral": replace(
        _LLAMA, attention_bias=False, mlp_bias=False, experts=EXPERT_NAMES["mixtral"]
    ),
    "qwen3_moe": Architecture("qwen3moe", experts=EXPERT_NAMES["qwen3_moe"]),
}
"""By Hugging Face model_type."""


def gguf_name(name: str, architecture: Architecture = _LLAMA) -> str | None:
    """`model.layers.0.self_attn.q_proj.weight` -> `blk.0.attn_q.weight`; None when unknown."""
    module, _, kind = name.rpartition(".")
    layer = re.fullmatch(r"model\.layers\.(\d+)\.(.+)", module)
    found, modules = _MODULES.get(module), architecture.layer_modules
    if layer is not None and layer[2] in modules:
        found = f"blk.{layer[1]}.{modules[layer[2]]}"
    return None if found is None or kind not in ("weight", "bias") else f"{found}.{kind}"


def hugging_face_name(name: str, architecture: Architecture = _LLAMA) -> str | None:
    """The inverse of `gguf_name`."""
    module, _, kind = name.rpartition(".")
    layer = re.fullmatch(r"blk\.(\d+)\.(\w+)", module)
    found = _HF_MODULES.get(module)
    modules = {gguf: hf for hf, gguf in architecture.layer_modules.items()}
    if layer is not None and layer[2] in modules:
        found = f"model.layers.{layer[1]}.{modules[layer[2]]}"
    return None if found is None or kind not in ("weight", "bias") else f"{found}.{kind}"


def stacked_name(name: str, architecture: Architecture) -> tuple[str, int] | None:
    """`model.layers.0.mlp.experts.3.up_proj.weight` -> (`blk.0.ffn_up_exps.weight`, 3); None for
    what is no expert's."""
    if architecture.experts is None:
        return None
    block = re.escape(architecture.experts.block)
    found = re.fullmatch(rf"model\.layers\.(\d+)\.{block}\.experts\.(\d+)\.(\w+)\.weight", name)
    for part, tensor in _STACKED.items():
        if found is not None and found[3] == getattr(architecture.experts, part):
            return f"blk.{found[1]}.{tensor}.weight", int(found[2])
    return None


def experts_names(name: str, count: int, architecture: Architecture) -> list[str] | None:
    """The inverse: the names of all experts' matrices in one tensor."""
    found = re.fullmatch(r"blk\.(\d+)\.(\w+)\.weight", name)
    parts = {tensor: part for part, tensor in _STACKED.items()}
    if architecture.experts is None or found is None or found[2] not in parts:
        return None
    leaf = getattr(architecture.experts, parts[found[2]])
    block = f"model.layers.{found[1]}.{architecture.experts.block}"
    return [f"{block}.experts.{number}.{leaf}.weight" for number in range(count)]


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
