"""Scales of a quantized KV cache, from the keys and values of the calibration set.

They are taken where a cache takes them: behind norms and rotary embedding, from weights as stored.
"""

import inspect
import math
import threading
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from quant.format.containers import CONTAINERS, Format
from quant.format.errors import RecipeError, UnsupportedModelError
from quant.format.kv_cache import KvCacheScheme, KvScales, encode_kv_scales, kv_scale

if TYPE_CHECKING:
    import torch

    from quant.capture import LayerArguments
    from quant.skeleton import Skeleton

KvCache = Literal["none", "fp8", "int8"]
KV_CACHE_SCHEMES: Mapping[KvCache, KvCacheScheme | None] = {
    "none": None,
    "fp8": KvCacheScheme("e4m3"),
    "int8": KvCacheScheme("int8"),
}
_ATTENTION = "self_attn"
_ARGUMENT = "past_key_values"
_PROJECTIONS = (("k_proj", "v_proj"), ("qkv_proj",))


class CacheRecorder:
    """Stands in for the cache of one layer: notes the largest magnitudes, keeps nothing else.

    Forwards of several threads may share one.
    """

    def __init__(self) -> None:
        self.calls = 0
        self._keys = 0.0
        self._values = 0.0
        self._lock = threading.Lock()

    def update(
        self, keys: "torch.Tensor", values: "torch.Tensor", *_: object, **__: object
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """What attention calls; keys, values: [samples, kv_heads, tokens, head_dim]."""
        largest_key, largest_value = (float(x.abs().max()) for x in (keys, values))
        with self._lock:
            self.calls += 1
            self._keys = _larger(self._keys, largest_key)
            self._values = _larger(self._values, largest_value)
        return keys, values

    def within(self, arguments: "LayerArguments") -> "LayerArguments":
        """The arguments of a layer with this as its cache."""
        return replace(arguments, kwargs={**arguments.kwargs, _ARGUMENT: self})

    def tensors(self, layer: str, scheme: KvCacheScheme) -> dict[str, npt.NDArray[np.float32]]:
        """The stored scales, by name; `layer` is e.g. `model.layers.0`.

        Raises UnsupportedModelError when nothing was cached, or something that is not finite.
        """
        if not self.calls:
            raise UnsupportedModelError(
                f"{layer}: its attention put nothing in the KV cache; set kv_cache=none"
            )
        if not math.isfinite(self._keys + self._values):
            raise UnsupportedModelError(f"{layer}: keys or values for the cache are not finite")
        scales = KvScales(kv_scale(self._keys, scheme), kv_scale(self._values, scheme))
        return encode_kv_scales(f"{layer}.{_ATTENTION}", scales)


def require_kv_cache(asked: KvCache, format_name: Format, skeleton: "Skeleton") -> None:
    """Raises RecipeError for a format that holds no scales, UnsupportedModelError for a model whose
    attention is not where readers look for them."""
    if KV_CACHE_SCHEMES[asked] is None:
        return
    if not CONTAINERS[format_name].kv_cache:
        able = ", ".join(name for name, container in CONTAINERS.items() if container.kv_cache)
        raise RecipeError(
            f"'kv_cache' is '{asked}': format '{format_name}' holds no scales of a KV cache; set "
            f"kv_cache=none, or choose format={able}"
        )
    for index, layer in enumerate(skeleton.layers):
        attention = getattr(layer, _ATTENTION, None)
        known = any(all(hasattr(attention, n) for n in names) for names in _PROJECTIONS)
        if not known or _ARGUMENT not in inspect.signature(type(layer).forward).parameters:
            raise UnsupportedModelError(
                f"{skeleton.layer_name(index)}: its attention keeps no plain keys and values, so "
                "that its KV cache takes no scales; set kv_cache=none"
            )


def kv_cache_names(asked: KvCache, skeleton: "Skeleton") -> list[str]:
    """Names of the stored scales, one float32 each."""
    if KV_CACHE_SCHEMES[asked] is None:
        return []
    layers = [skeleton.layer_name(index) for index in range(len(skeleton.layers))]
    return [name for n in layers for name in encode_kv_scales(f"{n}.{_ATTENTION}", KvScales(1, 1))]


def kv_cache_notes(asked: KvCache) -> list[str]:
    """What the reader of a plan or a report should know."""
    if KV_CACHE_SCHEMES[asked] is None:
        return []
    return [
        f"scales of an {asked} KV cache are stored for each layer, from the largest keys and "
        "values of the calibration set; larger ones saturate"
    ]


def _larger(one: float, other: float) -> float:
    """The larger; NaN wins, so that it is not lost."""
    return other if math.isnan(other) or other > one else one
