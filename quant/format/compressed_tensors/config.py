"""The `quantization_config` of compressed-tensors: which module is stored in which scheme.

Source: the compressed-tensors package (QuantizationConfig, QuantizationScheme, QuantizationArgs).
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from quant.format.compressed_tensors.args import (
    PACKED,
    activation_args,
    format_of,
    parse_activation,
    parse_weights,
    weight_args,
)
from quant.format.errors import FileFormatError, UnsupportedModelError
from quant.format.kv_cache import KvCacheScheme, kv_cache_args, parse_kv_cache
from quant.format.scheme import FloatScheme, QuantizedScheme, Scheme

LAYOUT_VERSION = "0.20.0"
"""The release of compressed-tensors whose layout we write."""
FIRST_DENSE_VERSION = (0, 18)
"""Earlier releases started each word with a new code, so words of 3, 5, 6 or 7 bits had a gap."""

MIXED = "mixed-precision"


def quantization_config(
    modules: Mapping[str, Scheme], kv_cache: KvCacheScheme | None = None
) -> dict[str, Any]:
    """The config of a checkpoint whose linear modules are stored as `modules` says.

    `modules` must name every linear layer of the model (without `.weight`), also those left in
    floating point: what is not quantized is listed in `ignore`. `lm_head` is ignored unless it is
    quantized, since a tied one has no tensor but is still a module.

    vLLM loads any mixture. transformers 5 loads every symmetric one, and an asymmetric scheme only
    where it is the only one.
    """
    by_scheme: dict[QuantizedScheme, list[str]] = {}
    for name, scheme in modules.items():
        if isinstance(scheme, QuantizedScheme):
            by_scheme.setdefault(scheme, []).append(name)
    if not by_scheme and kv_cache is None:
        raise UnsupportedModelError("no module is quantized, so there is nothing to describe")
    ignore = [name for name, scheme in modules.items() if isinstance(scheme, FloatScheme)]
    if "lm_head" not in modules:
        ignore.append("lm_head")
    config: dict[str, Any] = {
        "quant_method": "compressed-tensors",
        "format": _common_format(by_scheme),
        "quantization_status": "compressed",
        "version": LAYOUT_VERSION,
        "global_compression_ratio": None,
        "config_groups": _groups(by_scheme),
        "ignore": ignore,
        "kv_cache_scheme": kv_cache_args(kv_cache),
        "sparsity_config": {},
        "transform_config": {},
    }
    if _needs_unpacking(by_scheme):
        # transformers 5 takes packed zero points only when it unpacks weights as it loads, and
        # that way knows one scheme alone. Servers ignore the key.
        config["dequantize"] = True
    return config


def _common_format(schemes: Collection[QuantizedScheme]) -> str:
    formats = {format_of(scheme) for scheme in schemes}
    if not formats:
        return "dense"
    return formats.pop() if len(formats) == 1 else MIXED


def _groups(by_scheme: Mapping[QuantizedScheme, list[str]]) -> dict[str, Any]:
    # The class name "Linear" is what servers that fuse layers look for; it suits one scheme only.
    quantized = [name for names in by_scheme.values() for name in names]
    one = len(by_scheme) == 1 and all(_module_class(name) == "Linear" for name in quantized)
    return {
        f"group_{i}": {
            "targets": ["Linear"] if one else names,
            "weights": weight_args(scheme),
            "input_activations": activation_args(scheme.activation),
            "output_activations": None,
            "format": format_of(scheme),
        }
        for i, (scheme, names) in enumerate(by_scheme.items())
    }


def _needs_unpacking(schemes: Collection[QuantizedScheme]) -> bool:
    if len(schemes) != 1:
        return False
    (scheme,) = schemes
    return not scheme.symmetric and format_of(scheme) == PACKED


@dataclass(frozen=True)
class StoredScheme:
    """A scheme and how it is laid out in the file."""

    format: str
    scheme: QuantizedScheme


@dataclass(frozen=True)
class SchemeTable:
    """Answers which scheme a module has, by the rules of compressed-tensors."""

    where: str
    groups: tuple[tuple[tuple[str, ...], StoredScheme], ...]
    ignore: tuple[str, ...]
    dense_words: bool
    """The writer surely packed a dense stream of bits."""
    kv_cache: KvCacheScheme | None = None

    def lookup(self, module: str) -> StoredScheme | None:
        """Exact names come before patterns, patterns before class names; `ignore` beats all."""
        if any(_match_rank(module, target) is not None for target in self.ignore):
            return None
        ranked = [
            (rank, i)
            for i, (targets, _) in enumerate(self.groups)
            for target in targets
            if (rank := _match_rank(module, target)) is not None
        ]
        return self.groups[min(ranked)[1]][1] if ranked else None


def _module_class(module: str) -> str:
    return "Embedding" if module.rpartition(".")[2] == "embed_tokens" else "Linear"


def _match_rank(module: str, target: str) -> int | None:
    if target == module:
        return 0
    if target.startswith("re:"):
        return 1 if re.match(target.removeprefix("re:"), module) else None
    return 2 if target == _module_class(module) else None


def parse_config(config: Mapping[str, Any], where: str) -> SchemeTable:
    """Raises FileFormatError when the config is malformed, UnsupportedModelError when it asks for
    something that changes the numbers and that we do not know."""
    if config.get("transform_config"):
        raise UnsupportedModelError(
            f"{where}: quantization_config.transform_config is not supported"
        )
    sparsity = config.get("sparsity_config")
    if sparsity and not (isinstance(sparsity, dict) and sparsity.get("format") == "dense"):
        raise UnsupportedModelError(f"{where}: sparse checkpoints are not supported")
    groups = config.get("config_groups")
    if not isinstance(groups, dict) or not all(isinstance(g, dict) for g in groups.values()):
        raise FileFormatError(where, "quantization_config.config_groups is not a map of groups")
    table = tuple(
        (_strings(group.get("targets"), f"{where}: targets of {name}"), stored)
        for name, group in groups.items()
        if (stored := _stored_scheme(name, group, config.get("format"), where)) is not None
    )
    ignore = _strings(config.get("ignore") or [], f"{where}: quantization_config.ignore")
    kv_cache = parse_kv_cache(config.get("kv_cache_scheme"), where)
    return SchemeTable(where, table, ignore, _packs_densely(config.get("version")), kv_cache)


def _packs_densely(version: Any) -> bool:
    numbers = re.match(r"(\d{1,9})\.(\d{1,9})", str(version))
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= FIRST_DENSE_VERSION


def _stored_scheme(
    name: str, group: Mapping[str, Any], top_format: Any, where: str
) -> StoredScheme | None:
    weights, inputs, what = (
        group.get("weights"),
        group.get("input_activations"),
        f"{where}: quantization_config group '{name}'",
    )
    if weights is None:
        return None
    for key, args in (("weights", weights), ("input_activations", inputs)):
        if args is not None and not isinstance(args, dict):
            raise FileFormatError(what, f"has malformed {key}")
    if group.get("output_activations"):
        raise UnsupportedModelError(f"{what} rounds its outputs, which is not supported")
    layout = group.get("format") or top_format
    if not isinstance(layout, str):
        raise FileFormatError(what, f"has format {layout!r}")
    activation = parse_activation(inputs, what)
    return StoredScheme(layout, parse_weights(weights, layout, activation, what))


def _strings(values: Any, what: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise FileFormatError(what, "is not a list of names")
    for value in values:
        if value.startswith("re:"):
            _check_pattern(value.removeprefix("re:"), what)
    return tuple(values)


def _check_pattern(pattern: str, what: str) -> None:
    try:
        re.compile(pattern)
    except re.error as error:
        raise FileFormatError(what, f"{pattern!r} is not a regular expression ({error})") from error
