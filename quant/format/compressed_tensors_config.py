"""The `quantization_config` of compressed-tensors: which module is stored in which scheme.

Source: the compressed-tensors package (QuantizationConfig, QuantizationScheme, QuantizationArgs).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from quant.format.errors import FileFormatError, UnsupportedModelError
from quant.format.scheme import FloatScheme, IntScheme, PerChannel, PerGroup, Scheme

LAYOUT_VERSION = "0.20.0"
"""The release of compressed-tensors whose layout we write."""
FIRST_DENSE_VERSION = (0, 18)
"""Earlier releases started each word with a new code, so words of 3, 5, 6 or 7 bits had a gap."""

READABLE_FORMATS = ("pack-quantized", "int-quantized", "naive-quantized")


def quantization_config(modules: Mapping[str, Scheme]) -> dict[str, Any]:
    """The config of a checkpoint whose linear modules are stored as `modules` says.

    `modules` must name every linear layer of the model (without `.weight`), also those left in
    floating point: what is not quantized is listed in `ignore`. `lm_head` is ignored unless it is
    quantized, since a tied one has no tensor but is still a module.

    vLLM loads any mixture. transformers 5 loads every symmetric one, and an asymmetric scheme only
    where it is the only one.
    """
    by_scheme: dict[IntScheme, list[str]] = {}
    for name, scheme in modules.items():
        if isinstance(scheme, IntScheme):
            by_scheme.setdefault(scheme, []).append(name)
    if not by_scheme:
        raise UnsupportedModelError("no module is quantized, so there is nothing to describe")
    ignore = [name for name, scheme in modules.items() if isinstance(scheme, FloatScheme)]
    if "lm_head" not in modules:
        ignore.append("lm_head")
    # The class name "Linear" is what servers that fuse layers look for; it suits one scheme only.
    quantized = [name for names in by_scheme.values() for name in names]
    one = len(by_scheme) == 1 and all(_module_class(name) == "Linear" for name in quantized)
    groups = {
        f"group_{i}": {
            "targets": ["Linear"] if one else names,
            "weights": _weight_args(scheme),
            "input_activations": None,
            "output_activations": None,
            "format": "pack-quantized",
        }
        for i, (scheme, names) in enumerate(by_scheme.items())
    }
    config: dict[str, Any] = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "version": LAYOUT_VERSION,
        "global_compression_ratio": None,
        "config_groups": groups,
        "ignore": ignore,
        "kv_cache_scheme": None,
        "sparsity_config": {},
        "transform_config": {},
    }
    if len(by_scheme) == 1 and not next(iter(by_scheme)).symmetric:
        # transformers 5 takes packed zero points only when it unpacks weights as it loads, and
        # that way knows one scheme alone. Servers ignore the key.
        config["dequantize"] = True
    return config


def _weight_args(scheme: IntScheme) -> dict[str, Any]:
    grouped = isinstance(scheme.granularity, PerGroup)
    return {
        "num_bits": scheme.num_bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "group" if grouped else "channel",
        "group_size": scheme.granularity.size if isinstance(scheme.granularity, PerGroup) else None,
        "dynamic": False,
    }


@dataclass(frozen=True)
class StoredScheme:
    """A scheme and how it is laid out in the file."""

    format: str
    scheme: IntScheme
    one_scale: bool
    """Strategy "tensor": a single scale for the whole weight."""


@dataclass(frozen=True)
class SchemeTable:
    """Answers which scheme a module has, by the rules of compressed-tensors."""

    where: str
    groups: tuple[tuple[tuple[str, ...], StoredScheme], ...]
    ignore: tuple[str, ...]
    dense_words: bool
    """The writer surely packed a dense stream of bits."""

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
    for key in ("kv_cache_scheme", "transform_config"):
        if config.get(key):
            raise UnsupportedModelError(f"{where}: quantization_config.{key} is not supported")
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
    return SchemeTable(where, table, ignore, _packs_densely(config.get("version")))


def _packs_densely(version: Any) -> bool:
    numbers = re.match(r"(\d{1,9})\.(\d{1,9})", str(version))
    return numbers is not None and (int(numbers[1]), int(numbers[2])) >= FIRST_DENSE_VERSION


def _stored_scheme(
    name: str, group: Mapping[str, Any], top_format: Any, where: str
) -> StoredScheme | None:
    args = group.get("weights")
    if args is None:
        return None
    if not isinstance(args, dict):
        raise FileFormatError(where, f"quantization_config group '{name}' has malformed weights")
    layout = group.get("format") or top_format
    if layout not in READABLE_FORMATS:
        raise UnsupportedModelError(
            f"{where}: group '{name}' is stored as {layout!r}; "
            f"readable are {', '.join(READABLE_FORMATS)}"
        )
    if args.get("type", "int") != "int" or args.get("dynamic"):
        raise UnsupportedModelError(f"{where}: group '{name}' does not store integer weights")
    num_bits = args.get("num_bits")
    if type(num_bits) is not int or not 2 <= num_bits <= 8:
        raise FileFormatError(where, f"group '{name}' has num_bits {num_bits!r}, not 2 to 8")
    symmetric = args.get("symmetric", True)
    if not isinstance(symmetric, bool):
        raise FileFormatError(where, f"group '{name}' has symmetric {symmetric!r}")
    granularity = _granularity(name, args, where)
    one_scale = args.get("strategy") == "tensor"
    return StoredScheme(layout, IntScheme(num_bits, symmetric, granularity), one_scale)


def _granularity(name: str, args: Mapping[str, Any], where: str) -> PerChannel | PerGroup:
    size, strategy = args.get("group_size"), args.get("strategy")
    if strategy is None:
        strategy = "channel" if size == -1 else "group" if size else "tensor"
    if strategy in ("channel", "tensor"):
        return PerChannel()
    if strategy != "group":
        raise UnsupportedModelError(
            f"{where}: group '{name}' has the unknown strategy {strategy!r}"
        )
    if type(size) is not int or size <= 0:
        raise FileFormatError(
            where, f"group '{name}' has group_size {size!r}, not a positive number"
        )
    return PerGroup(size)


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
