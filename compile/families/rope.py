"""Rotary settings of a config: every scaling as factors, one for each pair of elements.

LongRoPE (Ding et al. 2024) has two lists of factors, for sequences up to the trained length and for
longer ones. transformers switches when a sequence grows beyond it, and computes all keys again;
llama.cpp decides by the context that it is opened with. Both take the short list where nothing is
longer than the trained length, so that this is the longest context of such a Program.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

from compile.families.settings import Settings, positive_number, whole_number
from compile.program import RopeSpec
from quant.format.errors import InputError, UnsupportedModelError

DEFAULT_THETA = LOCAL_THETA = 10_000.0


def rope_spec(
    settings: Settings, head_dim: int, max_positions: int, partial: bool = False
) -> RopeSpec:
    """Reads `rope_parameters` (transformers 5), or `rope_theta` and `rope_scaling` (before it).

    partial: whether the family may rotate a part of each head. Raises UnsupportedModelError for a
    scaling that changes with the length (dynamic), and for any name that it does not know.
    """
    return _spec(_parameters(settings, max_positions), head_dim, partial)


def rope_specs_by_window(
    settings: Settings, head_dim: int, max_positions: int
) -> tuple[RopeSpec, RopeSpec]:
    """(of layers that see everything, of layers with a window), as Gemma 3 has them: a table for
    each kind of layer, or the older keys `rope_local_base_freq` and those of the former."""
    given = settings.get("rope_parameters") or {}
    if not isinstance(given, Mapping) or not (set(given) <= _LAYER_KINDS.keys()):
        raise InputError(
            f"'rope_parameters' of the model's config must hold a table for each of "
            f"{', '.join(_LAYER_KINDS)}, not {given!r}"
        )
    specs = []
    for kind, (theta_key, scaling_key) in _LAYER_KINDS.items():
        theta = settings.get(theta_key)
        table = {"rope_theta": LOCAL_THETA if theta is None else theta}
        table |= _table(given.get(kind) or {})
        table |= _table(settings.get(scaling_key) or {}) if scaling_key else {}
        flat = Settings({"rope_parameters": table}, {})
        specs.append(_spec(_parameters(flat, max_positions), head_dim))
    return specs[0], specs[1]


_LAYER_KINDS: Mapping[str, tuple[str, str | None]] = {
    "full_attention": ("rope_theta", "rope_scaling"),
    "sliding_attention": ("rope_local_base_freq", None),
}


def reachable_positions(settings: Settings, rope: RopeSpec, max_positions: int) -> int:
    """The longest context for which `rope` holds."""
    if rope.scaling != "longrope":
        return max_positions
    return min(max_positions, _trained_length(_parameters(settings, max_positions)))


def _spec(parameters: Mapping[str, Any], head_dim: int, partial: bool = False) -> RopeSpec:
    kind = parameters["rope_type"]
    if not isinstance(kind, str) or kind not in SCALINGS:
        raise UnsupportedModelError(
            f"rope_type {kind!r} is not supported; supported: {', '.join(sorted(SCALINGS))}"
        )
    dimension = _dimension(parameters, head_dim, partial)
    theta = positive_number("rope_theta", parameters["rope_theta"])
    if theta <= 1:
        raise InputError(f"'rope_theta' of the model's config must be above 1, not {theta}")
    factors, attention_factor = SCALINGS[kind](parameters, theta, dimension)
    beyond = _listed(parameters, "long_factor", dimension) if kind == "longrope" else None
    return RopeSpec(dimension, theta, factors, attention_factor, kind, beyond)


def _dimension(parameters: Mapping[str, Any], head_dim: int, partial: bool) -> int:
    share = parameters.get("partial_rotary_factor")
    if share in (None, 1):
        return head_dim
    if not partial:
        raise UnsupportedModelError(f"partial_rotary_factor {share!r} is not supported")
    dimension = int(head_dim * min(positive_number("partial_rotary_factor", share), 1.0))
    if dimension < 2 or dimension % 2:
        raise InputError(
            f"'partial_rotary_factor' of the model's config is {share}, which rotates {dimension} "
            f"of a head's {head_dim} elements; rotary needs an even number of them"
        )
    return dimension


def _table(given: Any) -> Mapping[str, Any]:
    if not isinstance(given, Mapping):
        raise InputError(f"the rotary settings of the model's config are not a table: {given!r}")
    return given


def _parameters(settings: Settings, max_positions: int) -> dict[str, Any]:
    """One flat table with rope_type, rope_theta and original_max_position_embeddings filled in."""
    given = _table(settings.get("rope_scaling") or settings.get("rope_parameters") or {})
    nested = [key for key, value in given.items() if isinstance(value, Mapping)]
    if nested:
        raise UnsupportedModelError(
            f"rotary settings per kind of layer are not supported: {', '.join(nested)}"
        )
    parameters = dict(given)
    parameters["rope_type"] = given.get("rope_type") or given.get("type") or "default"
    # The first Phi-3 files give longrope other names.
    if "short_factor" in given and parameters["rope_type"] in ("su", "yarn"):
        parameters["rope_type"] = "longrope"
    parameters["max_position_embeddings"] = max_positions
    for key, otherwise in (("rope_theta", DEFAULT_THETA), ("partial_rotary_factor", None)):
        if parameters.get(key) is None:
            outer = settings.get(key)
            parameters[key] = otherwise if outer is None else outer
    # Phi-3 style configs keep the trained length outside, and transformers lets it win.
    trained = settings.get("original_max_position_embeddings")
    if trained is not None:
        parameters["original_max_position_embeddings"] = trained
    parameters.setdefault("original_max_position_embeddings", max_positions)
    return parameters


Scaling = tuple[tuple[float, ...] | None, float]


def _default(parameters: Mapping[str, Any], theta: float, dimension: int) -> Scaling:
    return None, 1.0


def _linear(parameters: Mapping[str, Any], theta: float, dimension: int) -> Scaling:
    return (_number(parameters, "factor"),) * (dimension // 2), 1.0


def _llama3(parameters: Mapping[str, Any], theta: float, dimension: int) -> Scaling:
    """Llama 3.1: long waves are slowed by `factor`, short ones kept, with a band in between."""
    factor = _number(parameters, "factor")
    low = _number(parameters, "low_freq_factor")
    high = _number(parameters, "high_freq_factor")
    trained = _trained_length(parameters)
    if high <= low:
        raise InputError(f"high_freq_factor {high} must be above low_freq_factor {low}")
    factors = []
    for pair in range(dimension // 2):
        wavelength = 2 * math.pi * theta ** (2 * pair / dimension)
        kept = min(max((trained / wavelength - low) / (high - low), 0.0), 1.0)
        factors.append(1.0 / ((1.0 - kept) / factor + kept))
    return tuple(factors), 1.0


def _yarn(parameters: Mapping[str, Any], theta: float, dimension: int) -> Scaling:
    """YaRN (Peng et al. 2023, section 3.2 and 3.4), with the options of transformers."""
    factor = _number(parameters, "factor")
    trained = _trained_length(parameters)

    def pair_turning(rotations: float) -> float:
        ratio = trained / (rotations * 2 * math.pi)
        return dimension * math.log(ratio) / (2 * math.log(theta))

    low = pair_turning(_number(parameters, "beta_fast", 32.0))
    high = pair_turning(_number(parameters, "beta_slow", 1.0))
    if parameters.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, dimension - 1)
    if low == high:
        high += 0.001
    factors = []
    for pair in range(dimension // 2):
        slowed = min(max((pair - low) / (high - low), 0.0), 1.0)
        factors.append(1.0 / (slowed / factor + (1.0 - slowed)))
    return tuple(factors), _yarn_attention_factor(parameters, factor)


def _yarn_attention_factor(parameters: Mapping[str, Any], factor: float) -> float:
    if parameters.get("attention_factor") is not None:
        return _number(parameters, "attention_factor")

    def temperature(strength: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * strength * math.log(factor) + 1.0

    strength, strength_all = parameters.get("mscale"), parameters.get("mscale_all_dim")
    if strength and strength_all:
        over = positive_number("mscale", strength)
        return temperature(over) / temperature(positive_number("mscale_all_dim", strength_all))
    return temperature(1.0)


def _factors(parameters: Mapping[str, Any], theta: float, dimension: int) -> Scaling:
    """Explicit divisors, as a GGUF file's rope_freqs tensor holds them."""
    factors = _listed(parameters, "factors", dimension)
    return factors, _number(parameters, "attention_factor", 1.0)


def _longrope(parameters: Mapping[str, Any], theta: float, dimension: int) -> Scaling:
    """LongRoPE's short list; the attention factor grows with the ratio of the two lengths."""
    factors = _listed(parameters, "short_factor", dimension)
    if parameters.get("attention_factor") is not None:
        return factors, _number(parameters, "attention_factor")
    trained = _trained_length(parameters)
    ratio = _number(parameters, "factor", parameters["max_position_embeddings"] / trained)
    if ratio <= 1 or trained < 2:
        return factors, 1.0
    return factors, math.sqrt(1 + math.log(ratio) / math.log(trained))


def _listed(parameters: Mapping[str, Any], key: str, dimension: int) -> tuple[float, ...]:
    given = parameters.get(key)
    if not isinstance(given, list | tuple) or len(given) != dimension // 2:
        raise InputError(f"the rotary '{key}' must be a list of {dimension // 2} numbers")
    return tuple(positive_number(key, value) for value in given)


def _number(parameters: Mapping[str, Any], key: str, otherwise: float | None = None) -> float:
    value = parameters.get(key)
    return positive_number(key, otherwise if value is None else value)


def _trained_length(parameters: Mapping[str, Any]) -> int:
    key = "original_max_position_embeddings"
    return whole_number(key, parameters[key], 1 << 31)


SCALINGS: dict[str, Callable[[Mapping[str, Any], float, int], Scaling]] = {
    "default": _default,
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
    "factors": _factors,
    "longrope": _longrope,
}
