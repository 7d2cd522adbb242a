"""Scales of a quantized KV cache: in the config of compressed-tensors and beside the weights.

Stored for each layer N: `model.layers.N.self_attn.k_scale` and `.v_scale`, float32 [1], worth
absmax / 448 for 8-bit floats and absmax / 127.5 for int8. Written by these names; the names that
Model Optimizer writes, `...self_attn.k_proj.k_scale` and `...v_proj.v_scale`, are read as well.
Source: the compressed-tensors package; vLLM's loader of KV-cache scales.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from quant.format.codec import FLOAT_DTYPES, Headers, LoadRaw
from quant.format.errors import FileFormatError, UnsupportedModelError

_NAME = re.compile(r"(.*layers\.(\d{1,9})\.self_attn)\.(?:([kv])_proj\.)?([kv])_scale")
_TYPES: Mapping[str, Literal["e4m3", "int8"]] = {"float": "e4m3", "int": "int8"}


@dataclass(frozen=True)
class KvCacheScheme:
    """How cached keys and values are rounded: symmetric, with a scale for each layer's keys and one
    for its values. dynamic: the server makes the scales itself, and none are stored."""

    numbers: Literal["e4m3", "int8"] = "e4m3"
    dynamic: bool = False


@dataclass(frozen=True)
class KvScales:
    """What the cached keys and values of a layer are multiplied by when they are read."""

    keys: float
    values: float


@runtime_checkable
class HasKvScales(Protocol):
    """A source of weights that may hold scales for its cache."""

    def kv_scales(self, layer: int) -> KvScales | None: ...


def kv_cache_of(source: object) -> KvCacheScheme | None:
    """What a source of weights says that the cache is rounded to; None where it says nothing."""
    scheme = getattr(source, "kv_cache", None)
    return scheme if isinstance(scheme, KvCacheScheme) else None


def kv_scales_of(source: object, layer: int) -> KvScales | None:
    """The scales that a source of weights holds for a layer; None where it holds none."""
    if kv_cache_of(source) is None or not isinstance(source, HasKvScales):
        return None
    return source.kv_scales(layer)


def kv_scale(absmax: float, scheme: KvCacheScheme) -> float:
    """The scale of a layer's keys or values whose largest magnitude is `absmax`; 1 for zeros.

    absmax / 448, or absmax / 127.5 for int8, as a float32.
    """
    largest = 448.0 if scheme.numbers == "e4m3" else 127.5
    return float(np.float32(absmax / largest)) or 1.0


def encode_kv_scales(attention: str, scales: KvScales) -> dict[str, npt.NDArray[np.float32]]:
    """The stored tensors of one layer, by name; `attention` is e.g. `model.layers.0.self_attn`.

    Raises ValueError for a scale that is not a positive number in float32.
    """
    stored = {}
    for part, scale in (("k_scale", scales.keys), ("v_scale", scales.values)):
        stored[f"{attention}.{part}"] = array = np.array([scale], dtype=np.float32)
        if not (np.isfinite(array).all() and (array > 0).all()):
            raise ValueError(f"{attention}.{part} is {scale}, not a positive number")
    return stored


def kv_cache_bytes(layers: int, scheme: KvCacheScheme | None) -> int:
    """Bytes of the stored scales of so many layers."""
    return 0 if scheme is None or scheme.dynamic else 8 * layers


def kv_cache_args(scheme: KvCacheScheme | None) -> dict[str, Any] | None:
    """The `kv_cache_scheme` of a quantization_config."""
    if scheme is None:
        return None
    return {
        "num_bits": 8,
        "type": "float" if scheme.numbers == "e4m3" else "int",
        "symmetric": True,
        "strategy": "tensor",
        "group_size": None,
        "dynamic": scheme.dynamic,
    }


def parse_kv_cache(args: object, where: str) -> KvCacheScheme | None:
    """Raises UnsupportedModelError for anything but symmetric 8-bit numbers with one scale."""
    if args is None or args == {}:
        return None
    what = f"{where}: quantization_config.kv_cache_scheme"
    if not isinstance(args, dict):
        raise FileFormatError(what, "is not an object")
    kind, dynamic = args.get("type", "int"), args.get("dynamic", False)
    known = isinstance(kind, str) and kind in _TYPES and args.get("num_bits", 8) == 8
    one = args.get("strategy") in (None, "tensor") and not args.get("group_size")
    if not (known and one and args.get("symmetric", True) is True and isinstance(dynamic, bool)):
        raise UnsupportedModelError(
            f"{what} is not symmetric 8-bit float or int with one scale per tensor, which alone "
            "can be read"
        )
    return KvCacheScheme(_TYPES[kind], dynamic=dynamic)


def find_kv_scales(headers: Headers) -> dict[str, tuple[int, str]]:
    """(layer, "k" or "v") of each stored scale of the KV cache, by its name."""
    found = {}
    for name in headers:
        match = _NAME.fullmatch(name)
        if match and match[3] in (None, match[4]):
            found[name] = (int(match[2]), match[4])
    return found


def load_kv_scales(
    headers: Headers, load: LoadRaw, scheme: KvCacheScheme | None, where: str
) -> dict[int, KvScales]:
    """The scales of every layer that has them.

    Raises FileFormatError for scales without a scheme, a scheme without any scale, half a pair, and
    for a scale that is not one positive number.
    """
    pairs: dict[int, dict[str, float]] = {}
    for name, (layer, part) in find_kv_scales(headers).items():
        if scheme is None or scheme.dynamic:
            problem = "belongs to no KV cache, for the config names none with stored scales"
            raise FileFormatError(where, f"tensor '{name}' {problem}")
        if part in pairs.setdefault(layer, {}):
            raise FileFormatError(where, f"tensor '{name}' is stored under two names")
        pairs[layer][part] = _scale(name, headers, load, where)
    for layer, pair in pairs.items():
        if len(pair) == 1:
            missing = "v" if "k" in pair else "k"
            raise FileFormatError(where, f"layer {layer} has no {missing}_scale for its KV cache")
    if scheme is not None and not scheme.dynamic and not pairs:
        raise FileFormatError(where, "the config quantizes the KV cache, but no scale is stored")
    return {layer: KvScales(pair["k"], pair["v"]) for layer, pair in sorted(pairs.items())}


def _scale(name: str, headers: Headers, load: LoadRaw, where: str) -> float:
    stored = headers[name]
    if stored.dtype.name not in FLOAT_DTYPES or stored.shape not in ((), (1,)):
        raise FileFormatError(
            where,
            f"tensor '{name}' has dtype {stored.dtype.name} and shape {list(stored.shape)} instead "
            "of one float",
        )
    value = float(load(name).astype(np.float32).reshape(()))
    if not (np.isfinite(value) and value > 0):
        raise FileFormatError(where, f"tensor '{name}' is {value}, not a positive number")
    return value
