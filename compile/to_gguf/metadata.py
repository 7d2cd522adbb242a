"""The keys of a GGUF header that describe the model itself."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from compile.gguf_names import LONG_FACTORS, ROPE_FACTORS, SHORT_FACTORS, Architecture
from compile.program import Attend, Logits, Moe, Program, RmsNorm, RopeSpec
from compile.to_gguf.limits import embedding_root, embedding_scale, layer_ropes, ropes
from quant.format.errors import UnsupportedModelError
from quant.format.gguf_writer import TypedValue

QUANTIZATION_VERSION = 2

Keys = dict[str, TypedValue]


def model_keys(
    program: Program,
    architecture: Architecture,
    config: Mapping[str, Any],
    name: str,
    file_type: int,
) -> tuple[Keys, list[str]]:
    """(keys, notes) in a fixed order. file_type: llama.h, enum llama_ftype.

    Raises UnsupportedModelError for what GGUF cannot say.
    """
    sizes, arch = program.sizes, architecture.name
    whole, local = ropes(program, architecture)
    context, notes = _context(program, architecture, config)
    keys: Keys = {
        "general.architecture": arch,
        "general.type": "model",
        "general.name": name,
        "general.size_label": _size_label(program),
        "general.file_type": np.uint32(file_type),
        "general.quantization_version": np.uint32(QUANTIZATION_VERSION),
    }
    counts = {
        "vocab_size": sizes.vocab_size,
        "context_length": context,
        "embedding_length": sizes.hidden_size,
        "block_count": sizes.layers,
        "feed_forward_length": sizes.intermediate_size,
        "attention.head_count": sizes.heads,
        "attention.head_count_kv": sizes.kv_heads,
        "attention.key_length": sizes.head_dim,
        "attention.value_length": sizes.head_dim,
        "rope.dimension_count": whole.dimension,
    }
    keys |= {f"{arch}.{key}": np.uint32(count) for key, count in counts.items()}
    keys[f"{arch}.attention.layer_norm_rms_epsilon"] = np.float32(_epsilon(program))
    keys |= {f"{arch}.{key}": value for key, value in _extras(program, architecture).items()}
    rope = _rope(whole, architecture, config, sizes.max_positions)
    if architecture.local_rope:
        rope["freq_base_swa"] = np.float32(local.theta)
    notes += _embedding_notes(program, architecture)
    return keys | {f"{arch}.rope.{key}": value for key, value in rope.items()}, notes


def rope_factors(
    program: Program, architecture: Architecture
) -> dict[str, npt.NDArray[np.float32]]:
    """float32 [dimension / 2] by tensor name; empty where keys say it all."""
    spec, _ = ropes(program, architecture)
    known = ("linear",) if architecture.local_rope else ("linear", "yarn")
    if spec.factors is None or spec.scaling in known:
        return {}
    if spec.scaling == "longrope" and architecture.longrope:
        lists = {LONG_FACTORS: spec.long_factors, SHORT_FACTORS: spec.factors}
        return {name: np.array(factors, np.float32) for name, factors in lists.items()}
    if not architecture.rope_factors:
        raise UnsupportedModelError(
            f"llama.cpp cannot scale the rotary embedding of {architecture.name} models by "
            f"'{spec.scaling}'; it knows {' and '.join(known)} there"
        )
    return {ROPE_FACTORS: np.array(spec.factors, np.float32)}


def _extras(program: Program, architecture: Architecture) -> Keys:
    """Windows, caps and scales, where the architecture has them."""
    keys: Keys = {}
    windows = [window for _, window in layer_ropes(program)]
    found = {window for window in windows if window is not None}
    period = architecture.window_period
    if period is not None and found:
        keys["attention.sliding_window"] = np.uint32(found.pop())
    usual = [(layer + 1) % (period or 1) != 0 for layer in range(len(windows))]
    having = [window is not None for window in windows]
    if period is not None and having != usual:
        keys["attention.sliding_window_pattern"] = np.array(having, np.uint32)
    for op in program.ops:
        if isinstance(op, Attend | Logits) and op.softcap is not None:
            kind = "attn" if isinstance(op, Attend) else "final"
            keys[f"{kind}_logit_softcapping"] = np.float32(op.softcap)
    mixture = next((op for op in program.ops if isinstance(op, Moe)), None)
    if mixture is not None:
        keys["expert_count"] = np.uint32(len(mixture.experts))
        keys["expert_used_count"] = np.uint32(mixture.chosen)
        keys["expert_feed_forward_length"] = np.uint32(mixture.experts[0].gate.out_features)
    if _embedding_notes(program, architecture):
        keys["embedding_scale"] = np.float32(embedding_scale(program))
    return keys


def _embedding_notes(program: Program, architecture: Architecture) -> list[str]:
    scale, root = embedding_scale(program), embedding_root(program)
    if not architecture.scaled_embeddings or math.isclose(scale, root, rel_tol=1e-6):
        return []
    return [
        f"llama.cpp multiplies embeddings by {root:.6g}, which the checkpoint's own type rounds to "
        f"{scale:.6g}: its logits differ by that; a key of the file tells other readers"
    ]


def _rope(
    spec: RopeSpec, architecture: Architecture, config: Mapping[str, Any], max_positions: int
) -> Keys:
    keys: Keys = {"freq_base": np.float32(spec.theta)}
    if spec.scaling == "longrope" and architecture.longrope:
        keys |= {
            "scaling.type": "longrope",
            "scaling.original_context_length": np.uint32(max_positions),
            "scaling.attn_factor": np.float32(spec.attention_factor),
        }
    elif spec.scaling == "linear" and spec.factors is not None:
        keys |= {"scaling.type": "linear", "scaling.factor": np.float32(spec.factors[0])}
    elif spec.scaling == "yarn":
        keys |= _yarn(spec, config, max_positions)
    elif spec.attention_factor != 1:
        keys["scaling.attn_factor"] = np.float32(spec.attention_factor)
    return keys


def _yarn(spec: RopeSpec, config: Mapping[str, Any], max_positions: int) -> Keys:
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    if not given.get("truncate", True):
        raise UnsupportedModelError("llama.cpp always rounds yarn's bounds; 'truncate' is false")
    factor = float(given["factor"])
    trained = config.get("original_max_position_embeddings") or given.get(
        "original_max_position_embeddings", max_positions
    )
    keys: Keys = {
        "scaling.type": "yarn",
        "scaling.factor": np.float32(factor),
        "scaling.original_context_length": np.uint32(trained),
    }
    for key in ("beta_fast", "beta_slow"):
        if given.get(key) is not None:
            keys[f"scaling.yarn_{key}"] = np.float32(given[key])
    # llama.cpp multiplies this with 1 + 0.1 * ln(factor), which it always applies.
    own = 1.0 + 0.1 * math.log(factor) if factor > 1 else 1.0
    if not math.isclose(spec.attention_factor, own, rel_tol=1e-6):
        keys["scaling.attn_factor"] = np.float32(spec.attention_factor / own)
    return keys


def _context(
    program: Program, architecture: Architecture, config: Mapping[str, Any]
) -> tuple[int, list[str]]:
    """The longest context in which full attention gives the same as the model's own windows."""
    windows = {op.window for op in program.ops if isinstance(op, Attend)}
    longest = program.sizes.max_positions
    if ropes(program, architecture)[0].scaling == "longrope":
        longest = int(config["max_position_embeddings"])
    if architecture.window_period is not None:
        return longest, []
    shortest = min((window for window in windows if window is not None), default=longest)
    if shortest >= longest:
        return longest, []
    return shortest, [
        f"llama.cpp ignores the sliding window of {shortest} tokens of this architecture; the "
        f"context length is set to {shortest} instead of {longest}, where both agree"
    ]


def _epsilon(program: Program) -> float:
    return next(op.eps for op in program.ops if isinstance(op, RmsNorm))


def _size_label(program: Program) -> str:
    parameters = sum(math.prod(shape) for shape in program.weights().values())
    for unit, suffix in ((10**9, "B"), (10**6, "M")):
        if parameters >= unit:
            digits = 1 if parameters < 10 * unit else 0
            return f"{parameters / unit:.{digits}f}{suffix}"
    return f"{parameters / 1000:.0f}K"
