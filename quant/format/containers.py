"""The checkpoints that a quantized model can be written as: a row of the table for each format.

All of them hold the same integers. What one of them cannot hold is known from schemes and shapes
alone, so that it is refused before a weight is read.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol

import numpy.typing as npt

from quant.format import awq, compressed_tensors, fp8, ggml_checkpoint, gptq
from quant.format.errors import RecipeError
from quant.format.kv_cache import KvCacheScheme
from quant.format.scheme import FloatScheme, IntScheme, PerGroup, PerTensor, QuantizedScheme, Scheme
from quant.format.tensor import QuantizedTensor

Format = Literal["compressed-tensors", "gptq", "gptq_v2", "awq", "fp8", "ggml"]
Shape = tuple[int, ...]

GPTQ_CONFIG = "quantize_config.json"
"""A copy of `quantization_config` that older readers of GPTQ look for."""


class MakeConfig(Protocol):
    """The `quantization_config` for {module: scheme} of every linear, and the damping of GPTQ.

    kv_cache: how the KV cache is rounded; only where the container holds that.
    """

    def __call__(
        self, modules: Mapping[str, Scheme], damping: float, kv_cache: KvCacheScheme | None = None
    ) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Container:
    """One format of checkpoint.

    encode: the stored tensors of a module's weight, by name; `quant.format.layout` tells what they
    will be. config: see MakeConfig. check: why a weight of a scheme and shape cannot be held, and
    what to set instead; None when it can.
    scale_dtype: the only type of scales, None for that of the model.
    signed_scales: whether readers take negative ones. one_scheme: whether all weights share one.
    may_skip: whether it can tell which linears of the decoder layers are not quantized.
    lowest_zero: the smallest zero point, counted from qmin. kv_cache: whether it holds scales of a
    KV cache. extra_file: where a copy of the config goes.
    """

    encode: Callable[[str, QuantizedTensor], dict[str, npt.NDArray[Any]]]
    config: MakeConfig
    check: Callable[[QuantizedScheme, Shape], str | None]
    scale_dtype: Literal["float16", "float32"] | None = None
    signed_scales: bool = False
    one_scheme: bool = True
    may_skip: bool = True
    lowest_zero: int = 0
    kv_cache: bool = False
    extra_file: str | None = None


def require_holdable(
    format_name: Format, modules: Mapping[str, tuple[Scheme, Shape]], outside: frozenset[str]
) -> None:
    """Raise RecipeError naming the first linear that the format cannot hold, and the fix.

    modules: scheme and shape of every linear; those of `outside` lie outside the decoder layers.
    """
    container = CONTAINERS[format_name]
    common: tuple[str, Scheme] | None = None
    for module, (scheme, shape) in modules.items():
        problem = None
        if isinstance(scheme, FloatScheme):
            if module not in outside and not container.may_skip:
                problem = "it has no word for linears of decoder layers left out: ignore none"
        else:
            common = common or (module, scheme)
            problem = container.check(scheme, shape)
            if not problem and container.one_scheme and scheme != common[1]:
                problem = (
                    f"it has one scheme for all, and {common[0]} is {common[1]}: make them alike"
                )
        if problem:
            widest = "compressed-tensors"
            other = "" if format_name == widest else f", or choose format={widest}"
            raise RecipeError(
                f"{module}: format '{format_name}' cannot hold it as {scheme}: {problem}{other}"
            )


def _compressed_config(
    modules: Mapping[str, Scheme], damping: float, kv_cache: KvCacheScheme | None = None
) -> dict[str, Any]:
    return compressed_tensors.quantization_config(modules, kv_cache)


def _fp8_config(
    modules: Mapping[str, Scheme], damping: float, kv_cache: KvCacheScheme | None = None
) -> dict[str, Any]:
    assert kv_cache is None
    return fp8.quantization_config(modules)


def _ggml_config(
    modules: Mapping[str, Scheme], damping: float, kv_cache: KvCacheScheme | None = None
) -> dict[str, Any]:
    assert kv_cache is None
    return ggml_checkpoint.quantization_config(modules)


def _plain_integers(name: str, scheme: QuantizedScheme) -> str | None:
    """What keeps GPTQ and AWQ files, which know integers alone, from holding a scheme."""
    if not isinstance(scheme, IntScheme):
        return f"{name} files hold integers: set scheme.type=int"
    if scheme.ggml_type is not None:
        return f"only GGUF files hold blocks of {scheme.ggml_type}: set scheme.type=int"
    if scheme.activation is not None:
        return f"{name} files cannot say that inputs are rounded: set scheme.activations=none"
    if isinstance(scheme.granularity, PerTensor):
        return f"{name} files have a scale per row at least: set scheme.group_size"
    return None


def _gptq_config(
    modules: Mapping[str, Scheme],
    damping: float,
    kv_cache: KvCacheScheme | None = None,
    *,
    checkpoint_format: str,
) -> dict[str, Any]:
    """Without `meta`, a writer's name: transformers takes it for a sign of GPTQModel's dialect."""
    scheme = _only_scheme(modules)
    return {
        "quant_method": "gptq",
        "bits": scheme.num_bits,
        "group_size": _group_size(scheme),
        "desc_act": False,
        "static_groups": False,
        "sym": scheme.symmetric,
        "lm_head": False,
        "true_sequential": True,
        "damp_percent": damping,
        "checkpoint_format": checkpoint_format,
        "pack_dtype": "int32",
    }


def _gptq_check(scheme: QuantizedScheme, shape: Shape) -> str | None:
    """Whole words along both sides: our reader takes a padded last one, others do not."""
    problem = _plain_integers("GPTQ", scheme)
    if problem:
        return problem
    bits, (rows, columns) = scheme.num_bits, shape
    if bits not in gptq.READABLE_BITS:
        return f"GPTQ files have 2, 3, 4 or 8 bits, not {bits}: set scheme.num_bits"
    for side, size in (("outputs", rows), ("inputs", columns)):
        if size * bits % 32:
            return f"its {size} {side} of {bits} bits do not fill whole words of 32 bits"
    return None


def _awq_config(
    modules: Mapping[str, Scheme], damping: float, kv_cache: KvCacheScheme | None = None
) -> dict[str, Any]:
    scheme = _only_scheme(modules)
    kept = [name for name, other in modules.items() if isinstance(other, FloatScheme)]
    config = {
        "quant_method": "awq",
        "bits": scheme.num_bits,
        "group_size": _group_size(scheme),
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": kept if "lm_head" in kept else [*kept, "lm_head"],
    }
    if scheme.symmetric:
        # Readers need the zero points, all 8, and know a file without them hardly at all. The key
        # tells that these zero points say nothing.
        config["sym"] = True
    return config


def _awq_check(scheme: QuantizedScheme, shape: Shape) -> str | None:
    problem, (rows, columns) = _plain_integers("AWQ", scheme), shape
    if problem:
        return problem
    if scheme.num_bits != 4:
        return f"AWQ files have 4 bits, not {scheme.num_bits}: set scheme.num_bits=4"
    if not isinstance(scheme.granularity, PerGroup):
        return "AWQ files have groups, not one scale per row: set scheme.group_size"
    if columns % scheme.granularity.size:
        return f"its {columns} inputs are not whole groups of {scheme.granularity.size}"
    if rows % 8:
        return f"its {rows} outputs are not a multiple of 8"
    return None


def _only_scheme(modules: Mapping[str, Scheme]) -> IntScheme:
    (scheme,) = {scheme for scheme in modules.values() if isinstance(scheme, IntScheme)}
    return scheme


def _group_size(scheme: IntScheme) -> int:
    return scheme.granularity.size if isinstance(scheme.granularity, PerGroup) else -1


def _gptq(checkpoint_format: str, layout: int, lowest_zero: int) -> Container:
    return Container(
        encode=partial(gptq.encode_weight, version=layout),
        config=partial(_gptq_config, checkpoint_format=checkpoint_format),
        check=_gptq_check,
        scale_dtype="float16",
        may_skip=False,
        lowest_zero=lowest_zero,
        extra_file=GPTQ_CONFIG,
    )


CONTAINERS: Mapping[Format, Container] = {
    "compressed-tensors": Container(
        encode=compressed_tensors.encode_weight,
        config=_compressed_config,
        check=compressed_tensors.why_not,
        signed_scales=True,
        one_scheme=False,
        kv_cache=True,
    ),
    "gptq": _gptq("gptq", 1, lowest_zero=1),
    "gptq_v2": _gptq("gptq_v2", 2, lowest_zero=0),
    "awq": Container(
        encode=awq.encode_weight,
        config=_awq_config,
        check=_awq_check,
        scale_dtype="float16",
    ),
    "fp8": Container(
        encode=fp8.encode_weight,
        config=_fp8_config,
        check=fp8.why_not,
        scale_dtype="float32",
    ),
    "ggml": Container(
        encode=ggml_checkpoint.encode_weight,
        config=_ggml_config,
        check=ggml_checkpoint.why_not,
        scale_dtype="float16",
        signed_scales=True,
        one_scheme=False,
    ),
}
