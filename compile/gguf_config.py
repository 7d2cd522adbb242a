"""The header of a GGUF file as a Hugging Face config."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from compile.gguf_names import (
    ARCHITECTURES,
    EMBEDDINGS,
    HEAD,
    LONG_FACTORS,
    ROPE_FACTORS,
    SHORT_FACTORS,
)
from quant.format.errors import FileFormatError, UnsupportedModelError
from quant.format.gguf_file import GgufFile

MODEL_TYPES = {
    (architecture.name, architecture.experts is not None): family
    for family, architecture in reversed(ARCHITECTURES.items())
}
"""Hugging Face model_type by GGUF architecture and whether it is a mixture of experts; Mistral
files call themselves llama."""

SAME_WINDOW = ("phi3", "mixtral")
"""Families whose layers all have the window that a file tells, though llama.cpp ignores it."""
ACTIVATION_KEYS = {"silu": "hidden_act", "gelu_tanh": "hidden_activation"}
ACTIVATION_NAMES = {"silu": "silu", "gelu_tanh": "gelu_pytorch_tanh"}


class GgufKeys:
    """The architecture's keys of a header, each checked as it is read."""

    def __init__(self, file: GgufFile) -> None:
        self.file = file
        self.arch = file.metadata.get("general.architecture")
        known = list(dict.fromkeys(name for name, _ in MODEL_TYPES))
        if not isinstance(self.arch, str) or self.arch not in known:
            problem = f"architecture {self.arch!r} is not supported; supported: {', '.join(known)}"
            raise UnsupportedModelError(f"{file.path}: {problem}")
        self.experts = self.optional_integer(f"{self.arch}.expert_count", 0)
        if (self.arch, self.experts > 0) not in MODEL_TYPES:
            problem = f"{self.arch} models with {self.experts} experts are not supported"
            raise UnsupportedModelError(f"{file.path}: {problem}")
        self.family = MODEL_TYPES[self.arch, self.experts > 0]
        self.architecture = ARCHITECTURES[self.family]
        if self.optional_integer("split.count", 1) > 1:
            problem = "is one part of a split model; join the parts with llama-gguf-split --merge"
            raise UnsupportedModelError(f"{file.path}: {problem}")
        if part := self.optional_integer("split.no", 0):
            raise self.error(f"says that it is part {part} of a split model that has one part")
        found = len(file.tensors)
        if (stated := self.optional_integer("split.tensors.count", found)) != found:
            raise self.error(f"says that it has {stated} tensors, but has {found}")

    def config(self) -> dict[str, Any]:
        hidden, heads = self.integer("embedding_length"), self.integer("attention.head_count")
        head_dim, activation = self._head_dim(hidden, heads), self.architecture.activation
        config: dict[str, Any] = {
            "model_type": self.family,
            ACTIVATION_KEYS[activation]: ACTIVATION_NAMES[activation],
            "hidden_size": hidden,
            "intermediate_size": self.integer("feed_forward_length"),
            "num_hidden_layers": self.integer("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self.integer("attention.head_count_kv", heads),
            "head_dim": head_dim,
            "rms_norm_eps": self.number("attention.layer_norm_rms_epsilon"),
            "vocab_size": self._vocab_size(),
            "max_position_embeddings": self.integer("context_length"),
            "attention_bias": "blk.0.attn_q.bias" in self.file.tensors,
            "mlp_bias": "blk.0.ffn_up.bias" in self.file.tensors,
            "tie_word_embeddings": HEAD not in self.file.tensors,
        }
        config |= self._rotations(head_dim)
        if self.architecture.window_period is not None:
            config |= self._gemma(config)
        if self.experts:
            config |= self._mixture(config["intermediate_size"])
        if self.family in SAME_WINDOW:
            # 0 says that there is none; without the key, transformers would take its default.
            window = self.optional_integer(f"{self.arch}.attention.sliding_window", 0)
            config["sliding_window"] = window or None
        return config | self._token_ids()

    def _gemma(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """Scales, caps and windows, with llama.cpp's defaults."""
        sizes = ("num_hidden_layers", "hidden_size", "num_attention_heads", "head_dim")
        windows = self._windows(config["num_hidden_layers"])
        found: dict[str, Any] = {
            "query_pre_attn_scalar": self.architecture.query_scalar(*(config[s] for s in sizes)),
            "layer_types": [f"{'sliding' if has else 'full'}_attention" for has in windows],
            "embedding_scale": self.number("embedding_scale", math.sqrt(config["hidden_size"])),
        }
        if any(windows):
            default = 4096 if self.architecture.softcaps == "both" else None
            found["sliding_window"] = self.integer("attention.sliding_window", default)
        defaults = {"attn": 50.0, "final": 30.0} if self.architecture.softcaps == "both" else {}
        for kind in ("attn", "final"):
            key = f"{kind}_logit_softcapping"
            given = f"{self.arch}.{key}" in self.file.metadata or kind in defaults
            found[key] = self.number(key, defaults.get(kind)) if given else None
        return found

    def _mixture(self, inner: int) -> dict[str, Any]:
        inner = self.integer("expert_feed_forward_length", inner)
        chosen = {"num_experts_per_tok": self.integer("expert_used_count")}
        if self.family == "mixtral":
            return chosen | {"num_local_experts": self.experts, "intermediate_size": inner}
        sizes = {"num_experts": self.experts, "moe_intermediate_size": inner}
        return chosen | sizes | {"norm_topk_prob": True, "decoder_sparse_step": 1}

    def _windows(self, layers: int) -> list[bool]:
        """Whether each layer has a window: a key tells all, or their period."""
        key = "attention.sliding_window_pattern"
        given = self.file.metadata.get(f"{self.arch}.{key}")
        if isinstance(given, np.ndarray):
            if len(given) < layers or not np.isin(given, (0, 1)).all():
                raise self.error(f"key '{self.arch}.{key}' must say yes or no for {layers} layers")
            return [bool(has) for has in given[:layers]]
        if self.architecture.softcaps != "both" and not self.optional_integer(
            f"{self.arch}.attention.sliding_window", 0
        ):
            return [False] * layers
        period = self.integer(key, self.architecture.window_period)
        return [(layer + 1) % period != 0 for layer in range(layers)]

    def _rotations(self, head_dim: int) -> dict[str, Any]:
        """rope_parameters as in transformers 5, and what goes with them."""
        rope = self._rope(self.integer("rope.dimension_count", head_dim))
        if self.architecture.local_rope:
            local = {"rope_theta": self.number("rope.freq_base_swa", 10_000.0)} | _PLAIN
            return {"rope_parameters": {"full_attention": rope, "sliding_attention": local}}
        found: dict[str, Any] = {"rope_parameters": rope}
        dimension = self.integer("rope.dimension_count", head_dim)
        if dimension != head_dim:
            # The share is rounded up, because it is cut off where it is used.
            rope["partial_rotary_factor"] = math.nextafter(dimension / head_dim, 2.0)
        if rope["rope_type"] == "longrope":
            found["original_max_position_embeddings"] = self._trained_length()
        return found

    def error(self, problem: str) -> FileFormatError:
        return FileFormatError(self.file.path, problem)

    def integer(self, key: str, default: int | None = None) -> int:
        """`{arch}.{key}`, at least 1."""
        key = f"{self.arch}.{key}"
        if default is None and key not in self.file.metadata:
            raise self.error(f"key '{key}' is missing")
        value = self.optional_integer(key, default or 0)
        if value < 1:
            raise self.error(f"key '{key}' must be at least 1, not {value}")
        return value

    def optional_integer(self, key: str, default: int) -> int:
        value = self.file.metadata.get(key, default)
        if isinstance(value, np.ndarray) and value.size and (value == value[0]).all():
            value = value[0].item()
        if isinstance(value, np.ndarray):
            problem = f"key '{key}' differs between layers, which is not supported"
            raise UnsupportedModelError(f"{self.file.path}: {problem}")
        if type(value) is not int or value < 0:
            raise self.error(f"key '{key}' must be a whole number, not {value!r}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        key = f"{self.arch}.{key}"
        value = self.file.metadata.get(key, default)
        if value is None:
            raise self.error(f"key '{key}' is missing")
        if type(value) not in (int, float) or not math.isfinite(value) or value <= 0:  # type: ignore[arg-type, operator]
            raise self.error(f"key '{key}' must be a number above 0, not {value!r}")
        return float(value)  # type: ignore[arg-type]

    def _token_ids(self) -> dict[str, Any]:
        """bos_token_id and eos_token_id; a list where several tokens end an answer."""
        ids = {
            role: self.optional_integer(key, 0)
            for role in ("bos", "eos", "eot", "eom")
            if (key := f"tokenizer.ggml.{role}_token_id") in self.file.metadata
        }
        stops = list(dict.fromkeys(ids[role] for role in ("eos", "eot", "eom") if role in ids))
        found: dict[str, Any] = {"bos_token_id": ids["bos"]} if "bos" in ids else {}
        if stops:
            found["eos_token_id"] = stops if len(stops) > 1 else stops[0]
        return found

    def _head_dim(self, hidden: int, heads: int) -> int:
        head_dim = self.integer("attention.key_length", hidden // heads)
        whole = ["attention.value_length"]
        whole += [] if self.architecture.longrope else ["rope.dimension_count"]
        for key in whole:
            if self.integer(key, head_dim) != head_dim:
                problem = f"{key} differs from the head's {head_dim} elements"
                raise UnsupportedModelError(f"{self.file.path}: {self.arch}.{problem}")
        return head_dim

    def _vocab_size(self) -> int:
        table = self.file.tensors.get(EMBEDDINGS)
        if table is None:
            raise self.error(f"tensor '{EMBEDDINGS}' is missing")
        return table.shape[0]

    def _rope(self, dimension: int) -> dict[str, Any]:
        """One rotation's parameters as in transformers 5."""
        rope: dict[str, Any] = {"rope_theta": self.number("rope.freq_base", 10_000.0)}
        kind = self.file.metadata.get(f"{self.arch}.rope.scaling.type", "none")
        if ROPE_FACTORS in self.file.tensors:
            if kind not in ("none", "linear") or self.number("rope.scaling.factor", 1.0) != 1:
                raise UnsupportedModelError(
                    f"{self.file.path}: {ROPE_FACTORS} together with rope scaling {kind!r}"
                )
            factors = self._factors(ROPE_FACTORS, dimension)
            return rope | {"rope_type": "factors", "factors": factors}
        if self.architecture.longrope and SHORT_FACTORS in self.file.tensors:
            return rope | self._longrope(dimension)
        if kind == "linear":
            factor = self.number("rope.scaling.factor", 1.0)
            return rope | ({"rope_type": "linear", "factor": factor} if factor != 1 else _PLAIN)
        if kind == "yarn":
            return rope | self._yarn()
        if kind != "none":
            raise UnsupportedModelError(f"{self.file.path}: rope scaling {kind!r} is not supported")
        return rope | _PLAIN

    def _longrope(self, dimension: int) -> dict[str, Any]:
        return {
            "rope_type": "longrope",
            "short_factor": self._factors(SHORT_FACTORS, dimension),
            "long_factor": self._factors(LONG_FACTORS, dimension),
            "attention_factor": self.number("rope.scaling.attn_factor", 1.0),
        }

    def _trained_length(self) -> int:
        return self.integer("rope.scaling.original_context_length", self.integer("context_length"))

    def _yarn(self) -> dict[str, Any]:
        factor = self.number("rope.scaling.factor")
        # llama.cpp multiplies its own attention factor with the one in the file.
        own = 1.0 + 0.1 * math.log(factor) if factor > 1 else 1.0
        return {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": self._trained_length(),
            "beta_fast": self.number("rope.scaling.yarn_beta_fast", 32.0),
            "beta_slow": self.number("rope.scaling.yarn_beta_slow", 1.0),
            "attention_factor": own * self.number("rope.scaling.attn_factor", 1.0),
        }

    def _factors(self, name: str, dimension: int) -> list[float]:
        tensor = self.file.tensors.get(name)
        if tensor is None:
            raise self.error(f"tensor '{name}' is missing")
        if tensor.type.name != "F32" or tensor.shape != (dimension // 2,):
            found = f"{tensor.type} {list(tensor.shape)}"
            raise self.error(f"tensor '{name}' must be F32 [{dimension // 2}], not {found}")
        return [float(value) for value in self.file.raw(name).view("<f4")]


_PLAIN = {"rope_type": "default"}
