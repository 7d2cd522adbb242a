"""What a GGUF header says of a model, as the config.json that transformers reads.

`GgufKeys.config` has a few words of its own for what a GGUF file holds as plain numbers. Here they
become transformers' words for the same.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from compile.families.decoder import embedding_scale
from compile.families.rope import SCALINGS
from compile.families.settings import Settings
from compile.same_program import RELATIVE_TOLERANCE
from quant.format.layout import FloatName

CLASSES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "mixtral": "MixtralForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}
TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
_EXTRA: Mapping[str, Mapping[str, Any]] = {"qwen3_moe": {"mlp_only_layers": []}}


def huggingface_config(
    config: Mapping[str, Any], metadata: Mapping[str, Any], dtype: FloatName
) -> dict[str, Any]:
    """config: of `open_gguf`. dtype: of most of the checkpoint's float matrices.

    Numbers are the shortest decimals that float32 rounds to what the header holds.
    """
    family = config["model_type"]
    found = {"architectures": [CLASSES[family]], **config, "dtype": dtype, **_EXTRA.get(family, {})}
    padding = metadata.get("tokenizer.ggml.padding_token_id")
    found["pad_token_id"] = None if padding is None else int(padding)
    # What is not said would be the family's default, a token of another vocabulary.
    found = dict.fromkeys(TOKENS) | found
    if family == "phi3" and found["head_dim"] == _usual_head(found):
        del found["head_dim"]
    if "embedding_scale" in found:
        _settle_embedding_scale(found, metadata)
    rope = found["rope_parameters"]
    found["rope_parameters"] = {
        key: _rotation(value, found) if isinstance(value, Mapping) else value
        for key, value in _rotation(rope, found).items()
    }
    shortened: dict[str, Any] = _shortest(found)
    return shortened


def _usual_head(config: Mapping[str, Any]) -> int:
    return int(config["hidden_size"] // config["num_attention_heads"])


def _settle_embedding_scale(config: dict[str, Any], metadata: Mapping[str, Any]) -> None:
    """Only a factor that the file tells, and that is not the family's own, stays: transformers
    knows no key for it."""
    told = any(key.endswith(".embedding_scale") for key in metadata)
    scale = config.pop("embedding_scale")
    usual = embedding_scale(Settings(config, {}))
    if told and not math.isclose(scale, usual, rel_tol=RELATIVE_TOLERANCE):
        config["embedding_scale"] = scale


def _rotation(rope: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """Explicit factors as the scaling of Llama 3 where it gives them, else as LongRoPE whose two
    lists are one."""
    if rope.get("rope_type") != "factors":
        return dict(rope)
    theta, factors = rope["rope_theta"], rope["factors"]
    found = {"rope_theta": theta}
    longest = config["max_position_embeddings"]
    llama3 = _llama3(theta, factors)
    if llama3 is not None:
        return found | llama3
    return found | {
        "rope_type": "longrope",
        "short_factor": factors,
        "long_factor": factors,
        "attention_factor": 1.0,
        "original_max_position_embeddings": longest,
    }


def _llama3(theta: float, factors: Sequence[float]) -> dict[str, Any] | None:
    """The parameters that give these factors; None where there are none.

    Between its two bounds the share that keeps its frequency grows evenly with the frequency: the
    line through those pairs tells both bounds as multiples of the trained length, of which any one
    may be chosen. Here it is the one whose lower bound is 1, as in all Llama models.
    """
    dimension, largest = 2 * len(factors), max(factors)
    if largest <= 1:
        return None
    pairs = np.arange(len(factors))
    turns = theta ** (-2 * pairs / dimension) / (2 * math.pi)
    kept = (1 / np.array(factors) - 1 / largest) / (1 - 1 / largest)
    between = (kept > 1e-4) & (kept < 1 - 1e-4)
    if np.count_nonzero(between) < 2:
        return None
    slope, start = np.polyfit(turns[between], kept[between], 1)
    if slope <= 0 or start >= 0:
        return None
    parameters = {
        "rope_type": "llama3",
        "factor": float(largest),
        "low_freq_factor": 1.0,
        "high_freq_factor": round(1 - 1 / start, 4),
        "original_max_position_embeddings": max(1, round(slope / -start)),
    }
    again, _ = SCALINGS["llama3"](parameters, theta, dimension)
    assert again is not None
    close = np.allclose(again, factors, rtol=RELATIVE_TOLERANCE, atol=0)
    return parameters if close else None


def _shortest(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _shortest(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_shortest(item) for item in value]
    if isinstance(value, float) and float(np.float32(value)) == value:
        return float(str(np.float32(value)))
    return value
