"""The keys of a GGUF header that describe the model itself."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from compile.gguf_names import Architecture
from compile.program import Attend, GatedAct, Program, RmsNorm, Rope, RopeSpec
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
    context, notes = _context(program)
    if any(isinstance(op, GatedAct) and op.activation != "silu" for op in program.ops):
        raise UnsupportedModelError(f"llama.cpp computes {arch} models with silu only")
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
        "rope.dimension_count": sizes.head_dim,
    }
    keys |= {f"{arch}.{key}": np.uint32(count) for key, count in counts.items()}
    keys[f"{arch}.attention.layer_norm_rms_epsilon"] = np.float32(_epsilon(program))
    rope = _rope(rope_of(program), architecture, config, sizes.max_positions)
    return keys | {f"{arch}.rope.{key}": value for key, value in rope.items()}, notes


def rope_of(program: Program) -> RopeSpec:
    """The one rotary embedding of all layers."""
    specs = {op.rope for op in program.ops if isinstance(op, Rope)}
    if len(specs) != 1:
        raise UnsupportedModelError("GGUF holds one kind of rotary embedding for all layers")
    return specs.pop()


def rope_factors(program: Program, architecture: Architecture) -> npt.NDArray[np.float32] | None:
    """float32 [head_dim / 2] for rope_freqs.weight, None where keys say it all."""
    spec = rope_of(program)
    if spec.factors is None or spec.scaling in ("linear", "yarn"):
        return None
    if not architecture.rope_factors:
        raise UnsupportedModelError(
            f"llama.cpp cannot scale the rotary embedding of {architecture.name} models by "
            f"'{spec.scaling}'; it knows linear and yarn there"
        )
    return np.array(spec.factors, np.float32)


def _rope(
    spec: RopeSpec, architecture: Architecture, config: Mapping[str, Any], max_positions: int
) -> Keys:
    keys: Keys = {"freq_base": np.float32(spec.theta)}
    if spec.scaling == "linear" and spec.factors is not None:
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


def _context(program: Program) -> tuple[int, list[str]]:
    """The longest context in which full attention gives the same as the model's own windows."""
    windows = {op.window for op in program.ops if isinstance(op, Attend)}
    longest = program.sizes.max_positions
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
