"""Mixes of ggml's types, as llama.cpp's quantizer deals them out when it has an importance matrix.

Source of the rules: llama_tensor_get_type_impl, tensor_type_fallback and
llama_ftype_get_default_type in src/llama-quant.cpp of github.com/ggml-org/llama.cpp. A file made by
these rules has type by type the bytes of one that llama.cpp makes.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quant.format.errors import RecipeError
from quant.format.gguf_types import F16, TYPE_BY_NAME, GgmlType

_FILE_TYPES = {
    "Q4_0": ("Q4_0", 2),
    "Q4_1": ("Q4_1", 3),
    "Q8_0": ("Q8_0", 7),
    "Q5_0": ("Q5_0", 8),
    "Q5_1": ("Q5_1", 9),
    "Q2_K": ("Q2_K", 10),
    "Q3_K_S": ("Q3_K", 11),
    "Q3_K_M": ("Q3_K", 12),
    "Q3_K_L": ("Q3_K", 13),
    "Q4_K_S": ("Q4_K", 14),
    "Q4_K_M": ("Q4_K", 15),
    "Q5_K_S": ("Q5_K", 16),
    "Q5_K_M": ("Q5_K", 17),
    "Q6_K": ("Q6_K", 18),
    "IQ4_NL": ("IQ4_NL", 25),
    "IQ4_XS": ("IQ4_XS", 30),
}
_PURE = {"Q3_K": 11, "Q4_K": 14, "Q5_K": 16}
"""Types that are no mix: every matrix gets them. The number is of the mix that is nearest."""
_FLOAT4 = {"MXFP4": 38, "NVFP4": 39}
"""Types that a recipe does not ask for here: their checkpoints have formats of their own."""
MIXES = (*_FILE_TYPES, *_PURE)
"""What a recipe may ask for: a mix of types, or one type for all."""

_NARROW = {
    "Q2_K": "Q4_0",
    "Q3_K": "Q4_0",
    "Q4_K": "Q5_0",
    "Q5_K": "Q5_1",
    "Q6_K": "Q8_0",
    "IQ4_XS": "IQ4_NL",
}
"""What stands in for a type whose blocks of 256 do not fill a row."""

_ROLES = {
    "embed_tokens": "table",
    "lm_head": "head",
    "q_proj": "q",
    "k_proj": "k",
    "v_proj": "v",
    "qkv_proj": "qkv",
    "o_proj": "o",
    "down_proj": "down",
    "w2": "down",
}


@dataclass(frozen=True)
class ModelFacts:
    """What the rules look at. query_groups: query heads for each key head. tied: whether the table
    of tokens is the output matrix too. large: whether llama.cpp takes it for a model of 70B."""

    layers: int
    query_groups: int
    experts: int = 0
    tied: bool = False
    large: bool = False


def facts_of(config: Mapping[str, Any]) -> ModelFacts:
    """The facts in a Hugging Face config.json."""
    layers, heads = int(config["num_hidden_layers"]), int(config["num_attention_heads"])
    kv_heads = int(config.get("num_key_value_heads") or heads)
    experts = config.get("num_local_experts") or config.get("num_experts") or 0
    eighty = layers == 80 and config.get("model_type") in ("llama", "mistral", "qwen2")
    tied = bool(config.get("tie_word_embeddings"))
    return ModelFacts(layers, heads // kv_heads, int(experts), tied, eighty)


def file_type(mix: str) -> int:
    """`general.file_type` of a file made by `mix` (llama.h, enum llama_ftype)."""
    return (_PURE | _FLOAT4).get(mix) or _FILE_TYPES[mix][1]


@dataclass(frozen=True)
class MixedType:
    """What a mix gives a matrix. wanted: if its rows were whole blocks of that; kind: what they are
    whole blocks of, F16 where of none."""

    wanted: GgmlType
    kind: GgmlType


def mix_type(mix: str, module: str, columns: int, facts: ModelFacts) -> GgmlType | None:
    """The type of a matrix with rows of `columns`; None where no block fills them.

    module: its Hugging Face name without `.weight`, e.g. "model.layers.3.mlp.down_proj". Raises
    RecipeError for an unknown mix.
    """
    kind = mixed_type(mix, module, columns, facts).kind
    return None if kind == F16 else kind


def mixed_type(mix: str, module: str, columns: int, facts: ModelFacts) -> MixedType:
    """`mix_type`, with what stood aside for it."""
    if mix not in MIXES:
        known = ", ".join(MIXES)
        raise RecipeError(f"scheme.ggml_type '{mix}' is not known; known are {known}")
    base = mix if mix in _PURE else _FILE_TYPES[mix][0]
    role = _ROLES.get(module.rpartition(".")[2], "other")
    found = re.search(r"\.layers\.(\d+)\.", f".{module}")
    layer = int(found[1]) if found else 0
    if role == "head" or (role == "table" and facts.tied):
        wanted = TYPE_BY_NAME["Q8_0" if base == "Q8_0" else "Q6_K"]
    else:
        wanted = TYPE_BY_NAME[base if mix in _PURE else _role_type(mix, base, role, layer, facts)]
    kind = wanted
    if columns % wanted.block:
        kind = TYPE_BY_NAME[_NARROW.get(wanted.name, wanted.name)]
    return MixedType(wanted, F16 if columns % kind.block else kind)


def _role_type(mix: str, base: str, role: str, layer: int, facts: ModelFacts) -> str:
    match role:
        case "v" | "qkv":
            return _value_type(mix, base, layer, facts)
        case "k" if facts.experts == 8:
            return "Q8_0"
        case "down":
            return _down_type(mix, base, layer, facts.layers)
        case "o":
            return _output_projection_type(mix, base, facts)
        case _:
            return base


def _value_type(mix: str, base: str, layer: int, facts: ModelFacts) -> str:
    name = base
    if mix == "Q2_K":
        name = "Q4_K" if facts.query_groups >= 4 else "Q3_K"
    elif mix == "Q3_K_M":
        name = "Q5_K" if layer < 2 else "Q4_K"
    elif mix == "Q3_K_L" or (mix in ("IQ4_NL", "IQ4_XS") and facts.query_groups >= 4):
        name = "Q5_K"
    elif mix in ("Q4_K_M", "Q5_K_M") and _gets_more_bits(layer, facts.layers):
        name = "Q6_K"
    elif mix == "Q4_K_S" and layer < 4:
        name = "Q5_K"
    if facts.large and name in ("Q3_K", "Q4_K"):
        name = "Q5_K"
    return "Q8_0" if facts.experts == 8 else name


def _down_type(mix: str, base: str, layer: int, layers: int) -> str:
    first_eighth = layer < layers // 8
    match mix:
        case "Q2_K":
            return "Q3_K"
        case "Q3_K_M":
            return "Q5_K" if layer < layers // 16 else "Q4_K"
        case "Q3_K_L":
            return "Q5_K"
        case "Q4_K_M" | "Q5_K_M" if _gets_more_bits(layer, layers):
            return "Q6_K"
        case "Q4_K_S" if first_eighth:
            return "Q5_K"
        case "Q4_0" if first_eighth:
            return "Q4_1"
        case "Q5_0" if first_eighth:
            return "Q5_1"
        case _:
            return base


def _output_projection_type(mix: str, base: str, facts: ModelFacts) -> str:
    if facts.experts == 8:
        eased = ("Q2_K", "Q3_K_S", "Q3_K_M", "Q4_K_S", "Q4_K_M", "IQ4_NL", "IQ4_XS")
        return "Q5_K" if mix in eased else base
    return {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K", "Q3_K_L": "Q5_K"}.get(mix, base)


def _gets_more_bits(layer: int, layers: int) -> bool:
    """The first and the last eighth of the layers, and every third between."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2
