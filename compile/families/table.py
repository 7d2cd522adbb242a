"""One row per model family: what sets it apart from the common decoder."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from compile.families.settings import MAX_LAYERS, Settings
from quant.format.errors import InputError, UnsupportedModelError

Windows = list[int | None]
"""Sliding window of each layer in tokens; None sees everything."""


def no_windows(settings: Settings, layers: int) -> Windows:
    return [None] * layers


def same_window(settings: Settings, layers: int) -> Windows:
    """Mistral: every layer has it, or none."""
    window = settings.get("sliding_window")
    return [None if window is None else settings.size("sliding_window")] * layers


def window_if_asked(settings: Settings, layers: int) -> Windows:
    """Qwen's mixtures: every layer has it where `use_sliding_window` says so."""
    wanted = settings.flag("use_sliding_window")
    return same_window(settings, layers) if wanted else no_windows(settings, layers)


def windows_by_layer(settings: Settings, layers: int) -> Windows:
    """Qwen: `layer_types` where given, else the layers from `max_window_layers` on."""
    window = settings.get("sliding_window") if settings.flag("use_sliding_window") else None
    if window is not None:
        window = settings.size("sliding_window")
    kinds = settings.get("layer_types")
    if kinds is None:
        first = layers if window is None else _first_window_layer(settings)
        return [window if layer >= first else None for layer in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise InputError(f"'layer_types' of the model's config must be a list of {layers} names")
    return [_window_of_kind(kind, window) for kind in kinds]


def _first_window_layer(settings: Settings) -> int:
    first = settings.get("max_window_layers")
    if isinstance(first, bool) or not isinstance(first, int) or first < 0:
        raise InputError(
            f"'max_window_layers' of the model's config must be a whole number, not {first!r}"
        )
    return first


def _window_of_kind(kind: Any, window: int | None) -> int | None:
    if kind == "full_attention":
        return None
    if kind != "sliding_attention":
        raise UnsupportedModelError(
            f"layer type {kind!r} is not supported; supported: full_attention, sliding_attention"
        )
    if window is None:
        raise InputError("'layer_types' of the model's config asks for a window, but none is set")
    return window


def _windows_but_each(period: int, settings: Settings, layers: int) -> Windows:
    """All layers have a window but each `period`-th, unless `layer_types` says otherwise."""
    window = settings.get("sliding_window")
    window = None if window is None else settings.size("sliding_window")
    kinds = settings.get("layer_types")
    if kinds is None:
        kinds = ["full_attention", *["sliding_attention"] * (period - 1)]
        kinds = [kinds[(layer + 1) % period] for layer in range(layers)]
    if not isinstance(kinds, list) or len(kinds) != layers:
        raise InputError(f"'layer_types' of the model's config must be a list of {layers} names")
    return [_window_of_kind(kind, window) for kind in kinds]


def windows_taking_turns(settings: Settings, layers: int) -> Windows:
    """Gemma 2: every other layer, from the first on."""
    return _windows_but_each(2, settings, layers)


def windows_by_pattern(settings: Settings, layers: int) -> Windows:
    """Gemma 3: the last of `sliding_window_pattern` layers sees everything."""
    return _windows_but_each(settings.size("sliding_window_pattern", MAX_LAYERS), settings, layers)


def every_layer(settings: Settings, layers: int) -> list[bool]:
    return [True] * layers


def every_sparse_step(settings: Settings, layers: int) -> list[bool]:
    """Qwen: each `decoder_sparse_step`-th layer but those of `mlp_only_layers`."""
    step, dense = settings.size("decoder_sparse_step"), settings.get("mlp_only_layers") or []
    if not isinstance(dense, list) or any(type(layer) is not int for layer in dense):
        raise InputError("'mlp_only_layers' of the model's config must be a list of whole numbers")
    return [layer not in dense and (layer + 1) % step == 0 for layer in range(layers)]


@dataclass(frozen=True)
class Mixture:
    """Config keys of a mixture of experts. count: transformers has renamed it in some families, so
    that the first of these that a config has is meant. normalized: a fixed choice, or the key that
    decides. layers: which ones have it; the others have a plain MLP."""

    count: tuple[str, ...]
    inner: str
    normalized: bool | str
    layers: Callable[[Settings, int], list[bool]] = every_layer


@dataclass(frozen=True)
class Family:
    """Biases are a fixed choice, or the name of the config key that decides.

    defaults: what transformers assumes for keys that a config leaves out. norm_offset: norms store
    their weights as offset from it. sandwich: what attention and MLP give is normed as well, before
    it is added. fused: q, k and v are one matrix, and so are gate and up. query_scalar: the key
    whose inverse square root scales attention, instead of the head's size. scaled_embeddings: by
    the square root of their width. local_rope: layers with a window have a rotation of their own.
    partial_rope: a config may rotate a part of each head. softcaps: the keys of the limits to
    attention's scores and to the logits. refused: keys that ask for what no executor computes.
    """

    qkv_bias: bool | str = False
    output_bias: bool | str = False
    mlp_bias: bool | str = False
    query_key_norm: bool = False
    norm_offset: float = 0.0
    sandwich: bool = False
    fused: bool = False
    activation: str = "hidden_act"
    query_scalar: str | None = None
    scaled_embeddings: bool = False
    local_rope: bool = False
    partial_rope: bool = False
    softcaps: tuple[str | None, str | None] = (None, None)
    refused: tuple[str, ...] = ()
    windows: Callable[[Settings, int], Windows] = no_windows
    mixture: Mixture | None = None
    defaults: Mapping[str, Any] = field(default_factory=dict)


_COMMON = {"rms_norm_eps": 1e-6, "hidden_act": "silu"}
_SOFTCAPS = ("attn_logit_softcapping", "final_logit_softcapping")
_GEMMA = {
    "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh",
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
}
_QWEN = {**_COMMON, "num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28}

FAMILIES: Mapping[str, Family] = {
    "llama": Family(
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        mlp_bias="mlp_bias",
        defaults=_COMMON,
    ),
    "mistral": Family(
        windows=same_window,
        defaults={**_COMMON, "num_key_value_heads": 8, "sliding_window": 4096},
    ),
    "qwen2": Family(qkv_bias=True, windows=windows_by_layer, defaults=_QWEN),
    "qwen3": Family(
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        query_key_norm=True,
        windows=windows_by_layer,
        defaults={**_QWEN, "head_dim": 128},
    ),
    "gemma2": Family(
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        norm_offset=1.0,
        sandwich=True,
        activation="hidden_activation",
        query_scalar="query_pre_attn_scalar",
        scaled_embeddings=True,
        softcaps=_SOFTCAPS,
        refused=("use_bidirectional_attention",),
        windows=windows_taking_turns,
        defaults={**_GEMMA, **dict(zip(_SOFTCAPS, (50.0, 30.0), strict=True))},
    ),
    "gemma3_text": Family(
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        query_key_norm=True,
        norm_offset=1.0,
        sandwich=True,
        activation="hidden_activation",
        query_scalar="query_pre_attn_scalar",
        scaled_embeddings=True,
        local_rope=True,
        softcaps=(None, "final_logit_softcapping"),
        refused=("use_bidirectional_attention", "attn_logit_softcapping"),
        windows=windows_by_pattern,
        defaults={
            **_GEMMA,
            "sliding_window_pattern": 6,
            "rope_theta": 1e6,
            "vocab_size": 262_208,
            "max_position_embeddings": 131_072,
        },
    ),
    "phi3": Family(
        fused=True,
        partial_rope=True,
        windows=same_window,
        defaults={
            **_COMMON,
            "rms_norm_eps": 1e-5,
            "original_max_position_embeddings": 4096,
        },
    ),
    "mixtral": Family(
        windows=same_window,
        mixture=Mixture(("num_local_experts",), "intermediate_size", True),
        defaults={
            **_COMMON,
            "rms_norm_eps": 1e-5,
            "rope_theta": 1_000_000.0,
            "num_key_value_heads": 8,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
        },
    ),
    "qwen3_moe": Family(
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        query_key_norm=True,
        windows=window_if_asked,
        mixture=Mixture(
            ("num_local_experts", "num_experts"),
            "moe_intermediate_size",
            "norm_topk_prob",
            every_sparse_step,
        ),
        defaults={
            **_COMMON,
            "num_key_value_heads": 4,
            "sliding_window": 4096,
            "num_experts": 128,
            "num_experts_per_tok": 8,
            "moe_intermediate_size": 768,
            "decoder_sparse_step": 1,
        },
    ),
}
