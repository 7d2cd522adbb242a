"""Which servers load a quantized checkpoint, by its format and its schemes, and why others do not.

The table holds what is written down about the servers' readers (vLLM of 2026, transformers 5,
llama.cpp): it is knowledge, not a test. What this machine has installed is not asked.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from quant.format.containers import Format
from quant.format.errors import InputError
from quant.format.kv_cache import KvCacheScheme
from quant.format.scheme import (
    CodebookScheme,
    FloatScheme,
    IntScheme,
    PerBlock,
    PerGroup,
    QuantizedScheme,
    Scheme,
)
from quant.fp8_blocks import unfit_for_blocks
from quant.tasks import FUSED

Schemes = Mapping[str, Scheme]
"""Scheme of every linear that is stored, by module; those left in 16 bit included."""
Shapes = Mapping[str, tuple[int, ...]]

_MARLIN_GROUPS = frozenset({32, 64, 128})


@dataclass(frozen=True)
class ServerVerdict:
    """Whether a server loads the result, and in a sentence what it needs or lacks."""

    server: str
    loads: bool
    reason: str


def judge_servers(
    format_name: Format,
    schemes: Schemes,
    shapes: Shapes,
    kv_cache: KvCacheScheme | None = None,
    *,
    family: str = "llama",
) -> list[ServerVerdict]:
    """A verdict for each server that we know something about. family: Hugging Face's model_type."""
    used = {scheme for scheme in schemes.values() if isinstance(scheme, QuantizedScheme)}
    judges: Mapping[str, Callable[[], tuple[str | None, str]]] = {
        "vLLM": lambda: _vllm(format_name, schemes, shapes, used, kv_cache),
        "transformers": lambda: _transformers(format_name, schemes, used),
        "llama.cpp": lambda: _llama_cpp(schemes, shapes, family),
        "coldpress serve": lambda: _coldpress(schemes, family),
    }
    verdicts = []
    for server, judge in judges.items():
        problem, need = judge()
        verdicts.append(ServerVerdict(server, problem is None, problem or need))
    return verdicts


_EXPERT = re.compile(r"(.*\.experts\.)\d+\..+")

_NO_TABLE = "set embeddings=null, and lm_head=null where they are one"

Found = tuple[str | None, str]
"""A problem, or None and what the server needs."""


def _vllm(
    format_name: Format,
    schemes: Schemes,
    shapes: Shapes,
    used: set[QuantizedScheme],
    kv_cache: KvCacheScheme | None,
) -> Found:
    if kv_cache is not None and kv_cache.numbers != "e4m3":
        return "it knows scales of fp8 KV caches alone: set kv_cache=fp8 or none", ""
    split = _split_fusion(schemes)
    if split is not None:
        return f"it makes one matrix of {split}, whose schemes differ: give them one", ""
    unfit = _unfit_for_blocks(schemes, shapes)
    if unfit is not None:
        return unfit, ""
    match format_name:
        case "ggml":
            return "this format is coldpress's own: build a GGUF file of it", ""
        case "gptq" | "gptq_v2":
            return _first([_vllm_gptq(scheme) for scheme in used])
        case "awq":
            return None, "as AWQ"
        case "fp8":
            return None, "as FP8 in blocks; GPUs from compute capability 8.9 on"
        case "compressed-tensors" if _has_table(schemes):
            return f"it finds no quantized token table by its name: {_NO_TABLE}", ""
        case "compressed-tensors" if len(used) > 1 and any(map(_EXPERT.fullmatch, schemes)):
            return "it looks for experts under the target 'Linear', which one scheme has alone", ""
        case "compressed-tensors":
            return _first([_vllm_compressed(scheme) for scheme in used])


def _vllm_gptq(scheme: QuantizedScheme) -> Found:
    """Its config `auto_gptq`, all that is left since the summer of 2026: by bits and symmetry."""
    if not isinstance(scheme, IntScheme) or not scheme.symmetric or scheme.num_bits not in (4, 8):
        return (
            "it reads GPTQ files of symmetric integers of 4 and 8 bits alone: set "
            "format=compressed-tensors",
            "",
        )
    return _marlin_groups(scheme) or (None, "as GPTQ, through Marlin")


def _marlin_groups(scheme: IntScheme) -> Found | None:
    """The problem with a size of groups that no kernel has."""
    grain = scheme.granularity
    if isinstance(grain, PerGroup) and grain.size not in _MARLIN_GROUPS:
        return f"its kernels know groups of 32, 64 and 128, not of {grain.size}", ""
    return None


def _vllm_compressed(scheme: QuantizedScheme) -> Found:
    if isinstance(scheme, CodebookScheme):
        return None, {
            "float": "as FP8; GPUs from 8.9 on compute in it, older ones from 8.0 on read weights",
            "e4m3": "as NVFP4; Blackwell computes in it, older GPUs read weights through Marlin",
            "e8m0": "as MX; recent versions, on GPUs that have kernels for it",
        }[scheme.scales]
    if scheme.activation is not None:
        if scheme.num_bits == 8 and not isinstance(scheme.granularity, PerGroup):
            return None, "as W8A8"
        if scheme.num_bits == 4 and scheme.activation.numbers == "int8":
            return None, "as W4A8, in recent versions"
        return f"it has no kernel for {scheme}", ""
    if scheme.num_bits in (4, 8):
        return _marlin_groups(scheme) or (None, "through Marlin")
    if not scheme.symmetric:
        return f"it reads zero points of 4 and 8 bits alone, not of {scheme.num_bits}", ""
    return _marlin_groups(scheme) or (None, "in recent versions, with the package humming-kernels")


def _unfit_for_blocks(schemes: Schemes, shapes: Shapes) -> str | None:
    """What of the FP8 weights in blocks vLLM cannot run."""
    blocks = {
        module: (shapes[module][0], shapes[module][1])
        for module, scheme in schemes.items()
        if isinstance(scheme, CodebookScheme) and isinstance(scheme.granularity, PerBlock)
    }
    unfit = unfit_for_blocks(blocks)
    return next((f"it cannot run {module} in blocks: {why}" for module, why in unfit.items()), None)


def _has_table(schemes: Schemes) -> bool:
    """Whether the token table is quantized."""
    return any(
        module.endswith("embed_tokens") and isinstance(scheme, QuantizedScheme)
        for module, scheme in schemes.items()
    )


def _transformers(format_name: Format, schemes: Schemes, used: set[QuantizedScheme]) -> Found:
    match format_name:
        case "ggml":
            return "this format is coldpress's own: build a GGUF file of it", ""
        case "gptq" | "gptq_v2":
            return None, "with the packages optimum and gptqmodel"
        case "awq":
            return None, "with the package gptqmodel"
        case "fp8":
            return None, "on a GPU or XPU; it dequantizes to bfloat16 elsewhere"
        case "compressed-tensors" if _has_table(schemes):
            return f"it does not unpack a quantized token table: {_NO_TABLE}", ""
        case "compressed-tensors":
            if len(used) > 1 and any(not scheme.symmetric for scheme in used):
                return "it does not load an asymmetric scheme mixed with others", ""
            return (
                None,
                "with the package compressed-tensors, which dequantizes",
            )


def _llama_cpp(schemes: Schemes, shapes: Shapes, family: str) -> Found:
    """Through `coldpress build --target gguf`, which rounds nothing again."""
    from compile.gguf_names import ARCHITECTURES
    from quant.format.gguf_blocks import lossless_type

    if family not in ARCHITECTURES:
        return f"coldpress builds no GGUF of {family} models", ""
    unlike = _unlike_experts(schemes)
    if unlike is not None:
        return f"a GGUF holds all {unlike} in one tensor: give them one scheme", ""
    types = set()
    for module, scheme in schemes.items():
        try:
            kind, _ = lossless_type(scheme, shapes[module][1])
        except InputError as error:
            return f"GGUF cannot hold it: {error}", ""
        if isinstance(scheme, QuantizedScheme):
            if kind.name in ("F16", "BF16", "F32"):
                return (
                    f"GGUF has no block for {scheme} in {module}: a build would dequantize it to "
                    f"{kind.name}",
                    "",
                )
            types.add(kind.name)
    return None, f"after coldpress build --target gguf, as {', '.join(sorted(types))}"


def _unlike_experts(schemes: Schemes) -> str | None:
    """The first linears, the same of each expert of a layer, whose schemes differ."""
    found: dict[str, set[Scheme]] = {}
    for module, scheme in schemes.items():
        match = _EXPERT.fullmatch(module)
        if match is not None:
            found.setdefault(f"{match[1]}*.{module.rpartition('.')[2]}", set()).add(scheme)
    return next((name for name, kinds in found.items() if len(kinds) > 1), None)


def _coldpress(schemes: Schemes, family: str) -> Found:
    from compile.families import FAMILIES
    from runtime.executors.cpu.support import LARGEST_BITS, SMALLEST_BITS, held_form

    if family not in FAMILIES:
        return f"it runs no {family} models", ""
    for module, scheme in schemes.items():
        if isinstance(scheme, IntScheme) and not SMALLEST_BITS <= scheme.num_bits <= LARGEST_BITS:
            return f"its kernels read integers of 2 to 8 bits, and {module} is {scheme}", ""
    quantized = [scheme for scheme in schemes.values() if not isinstance(scheme, FloatScheme)]
    return None, f"as it is: {', '.join(sorted({held_form(scheme) for scheme in quantized}))}"


def _first(found: list[Found]) -> Found:
    """The first problem; what is needed otherwise, without repetition."""
    for problem, _ in found:
        if problem is not None:
            return problem, ""
    return None, "; ".join(dict.fromkeys(need for _, need in found))


def _split_fusion(schemes: Schemes) -> str | None:
    """The names of linears that a server fuses and whose schemes differ; it fuses all experts of a
    layer, too."""
    for names in FUSED:
        pattern = re.compile(rf"(.*\.)({'|'.join(names)})")
        groups: dict[str, dict[str, Scheme]] = {}
        for module, scheme in schemes.items():
            match = pattern.fullmatch(module)
            if match is not None:
                groups.setdefault(match[1], {})[match[2]] = scheme
        for owner, members in groups.items():
            if len(set(members.values())) > 1:
                return ", ".join(f"{owner}{name}" for name in members)
    experts: dict[str, set[Scheme]] = {}
    for module, scheme in schemes.items():
        match = _EXPERT.fullmatch(module)
        if match is not None:
            experts.setdefault(match[1], set()).add(scheme)
    return next((f"all {owner}*" for owner, found in experts.items() if len(found) > 1), None)
