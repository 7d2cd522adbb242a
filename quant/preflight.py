"""What quantizing would do, from config.json and safetensors headers alone.

Everything that can go wrong without reading a weight goes wrong here, before anything expensive.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING

from quant.extras import require
from quant.format.checkpoint import Checkpoint, open_checkpoint
from quant.format.containers import CONTAINERS, Format, require_holdable
from quant.format.dequantized import dequantized, dequantized_notes
from quant.format.errors import UnsupportedModelError
from quant.format.layout import stored_bytes
from quant.format.scheme import QuantizedScheme, Scheme
from quant.kv_cache import kv_cache_names, kv_cache_notes, require_kv_cache
from quant.memory import peak_bytes, samples_per_batch, spooled_bytes
from quant.recipe import Recipe
from quant.resolve import ONE_PER_ROW, Resolution, resolve
from quant.tables import table_notes, table_tasks
from quant.tasks import FloatDtype, LinearTask
from quant.transforms.asked import rotated, scaled_tensors, transform_notes

if TYPE_CHECKING:
    from quant.skeleton import Skeleton

_DERIVED = (".rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias")
"""Endings of tensors in old checkpoints that follow from the config and are not weights."""


@dataclass(frozen=True)
class TensorPlan:
    """One tensor of the output. `bytes`: payload of everything it is stored as."""

    name: str
    shape: tuple[int, ...]
    scheme: str
    bytes: int
    reason: str


@dataclass(frozen=True)
class Plan:
    """tensors: in the order in which they are written. total_bytes: payload of the safetensors
    files, exact but for their headers. spooled_bytes: activations that lie in a file while it runs.
    notes: what the reader should know, a sentence each."""

    model: str
    tensors: tuple[TensorPlan, ...]
    total_bytes: int
    source_bytes: int
    peak_memory_bytes: int
    samples_per_batch: int
    spooled_bytes: int
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Prepared:
    """A plan with the opened things that it was made from, ready to be carried out.

    left_out: stored tensors that are not written, and why. linears: scheme of each linear that is
    stored, quantized or not, by module name.
    """

    plan: Plan
    source: Checkpoint
    skeleton: "Skeleton"
    resolution: Resolution
    left_out: Mapping[str, str]
    linears: Mapping[str, Scheme]


def plan_quantization(model: Path | Checkpoint, recipe: Recipe) -> Plan:
    """What `quantize_checkpoint` would write for `model`: a directory, or what was opened of one.

    Raises InputError, UnsupportedModelError or RecipeError for what could not work.
    """
    return prepare(model, recipe).plan


def prepare(model: Path | Checkpoint, recipe: Recipe) -> Prepared:
    """Open the checkpoint, check it against its architecture and the recipe, and plan."""
    stored = model if isinstance(model, Checkpoint) else open_checkpoint(model)
    require("torch", "quantizing")
    from quant.skeleton import build_skeleton, weight_dtype

    original, source_notes = _float_source(stored, recipe)
    source = rotated(original, recipe)
    skeleton = build_skeleton(stored.directory, source.config)
    left_out = _close_books(source, skeleton)
    require_kv_cache(recipe.kv_cache, recipe.format, skeleton)
    linears_by_name = skeleton.linears()
    widths = {name: linear.in_features for name, linear in linears_by_name.items()}
    heights = {name: linear.out_features for name, linear in linears_by_name.items()}
    if not widths:
        raise UnsupportedModelError(f"{stored.path}: its decoder layers hold no Linear to quantize")
    tables = table_tasks(recipe, skeleton)
    others, routers = skeleton.outer_linears(), skeleton.routers()
    resolution = resolve(recipe, widths, others, source.config, tables, routers, heights)
    dtype = weight_dtype(source.config)
    scales = CONTAINERS[recipe.format].scale_dtype or dtype
    linears = _linears(source, resolution)
    shapes = {name: source.shape(f"{name}.weight") for name in linears}
    described = {name: (scheme, shapes[name]) for name, scheme in linears.items()}
    require_holdable(recipe.format, described, frozenset([*others, *routers]))
    changed = scaled_tensors(recipe, source.config)
    tensors = (
        *_tensor_plans(source, resolution, left_out, recipe.format, scales, changed),
        *_kv_cache_plans(recipe, skeleton),
    )
    plan = Plan(
        model=str(stored.path),
        tensors=tensors,
        total_bytes=sum(tensor.bytes for tensor in tensors),
        source_bytes=sum(stored.stored_bytes(name) for name in stored.names()),
        peak_memory_bytes=peak_bytes(skeleton, recipe),
        samples_per_batch=samples_per_batch(skeleton, recipe.calibration),
        spooled_bytes=spooled_bytes(skeleton, recipe),
        notes=(
            *stored.notes,
            *source_notes,
            *_notes(resolution, left_out),
            *transform_notes(original, recipe),
            *_format_notes(recipe, resolution, dtype),
            *table_notes(recipe, tables),
            *kv_cache_notes(recipe.kv_cache),
        ),
    )
    return Prepared(plan, source, skeleton, resolution, left_out, linears)


def _float_source(stored: Checkpoint, recipe: Recipe) -> tuple[Checkpoint, list[str]]:
    """The checkpoint as floats, and what should be known of that."""
    from quant.skeleton import weight_dtype

    if stored.quant_method is None:
        return stored, []
    if not recipe.dequantize_source:
        raise UnsupportedModelError(
            f"{stored.path}: is already quantized ({stored.quant_method}); start from the original "
            "checkpoint, since rounding twice loses twice, or set dequantize_source=true"
        )
    dtype = weight_dtype(stored.config)
    return dequantized(stored, dtype), dequantized_notes(stored, dtype)


def _linears(source: Checkpoint, resolution: Resolution) -> dict[str, Scheme]:
    linears: dict[str, Scheme] = {
        name: task.scheme for name, task in resolution.all_tasks().items()
    }
    for module in resolution.kept:
        if f"{module}.weight" in source.names():
            linears[module] = source.scheme(f"{module}.weight")
    return linears


def _close_books(source: Checkpoint, skeleton: "Skeleton") -> dict[str, str]:
    """Each stored tensor belongs to the architecture, and the other way round; returns those that
    are left out. Raises UnsupportedModelError naming the first that does not fit."""
    expected, tied = skeleton.expected_tensors(), skeleton.tied_names()
    left_out = {}
    for name in source.names():
        if name in expected:
            continue
        if name in tied:
            left_out[name] = f"the same table as {tied[name]}, stored once"
        elif name.endswith(_DERIVED):
            left_out[name] = "follows from config.json"
        else:
            raise UnsupportedModelError(
                f"{source.path}: tensor '{name}' has no place in the architecture that "
                "config.json names"
            )
    for name, shape in expected.items():
        if name not in source.names():
            raise UnsupportedModelError(f"{source.path}: tensor '{name}' is missing")
        if source.shape(name) != shape:
            raise UnsupportedModelError(
                f"{source.path}: tensor '{name}' has shape {list(source.shape(name))} where "
                f"config.json says {list(shape)}"
            )
    return left_out


def _tensor_plans(
    source: Checkpoint,
    resolution: Resolution,
    left_out: Mapping[str, str],
    format_name: Format,
    scales: FloatDtype,
    changes: Mapping[str, str],
) -> tuple[TensorPlan, ...]:
    plans = []
    for name in source.names():
        if name in left_out:
            continue
        module, shape = name.removesuffix(".weight"), source.shape(name)
        task = resolution.all_tasks().get(module) if name.endswith(".weight") else None
        scheme: Scheme = source.scheme(name) if task is None else task.scheme
        if isinstance(scheme, QuantizedScheme):
            rows, columns = shape
            size = stored_bytes(format_name, scheme, (rows, columns), scales)
        else:
            size = math.prod(shape) * scheme.num_bits // 8
        why = _why(module, task, resolution)
        changed = [how for pattern, how in changes.items() if fnmatchcase(name, pattern)]
        plans.append(TensorPlan(name, shape, str(scheme), size, "; ".join([why, *changed])))
    return tuple(plans)


def _kv_cache_plans(recipe: Recipe, skeleton: "Skeleton") -> list[TensorPlan]:
    why = f"scale of an {recipe.kv_cache} KV cache"
    names = kv_cache_names(recipe.kv_cache, skeleton)
    return [TensorPlan(name, (1,), "float32", 4, why) for name in names]


def _why(module: str, task: LinearTask | None, resolution: Resolution) -> str:
    if task is not None:
        return f"{task.algorithm}: {resolution.reasons[module]}"
    return resolution.kept.get(module, "not a linear of a decoder layer")


def _notes(resolution: Resolution, left_out: Mapping[str, str]) -> list[str]:
    notes = [f"{name} is left out: {why}" for name, why in left_out.items()]
    unfit = [(m, why) for m, why in resolution.reasons.items() if why.startswith(ONE_PER_ROW)]
    if unfit:
        module, why = unfit[0]
        notes.append(f"{len(unfit)} linears do not get what the recipe asks for; {module}: {why}")
    schemes = {task.scheme for task in resolution.tasks.values()}
    if len(schemes) > 1 and any(not scheme.symmetric for scheme in schemes):
        notes.append(
            "an asymmetric scheme is mixed with others: vLLM loads that, transformers does not"
        )
    return notes


def _format_notes(recipe: Recipe, resolution: Resolution, dtype: FloatDtype) -> list[str]:
    """How the format changes what the recipe asks for, and who cannot read the result."""
    container, notes = CONTAINERS[recipe.format], []
    symmetric = any(task.scheme.symmetric for task in resolution.tasks.values())
    if recipe.scales == "signed" and symmetric and not container.signed_scales:
        notes.append(
            f"scales are chosen by 'search' instead of 'signed': kernels for {recipe.format} may "
            "take positive scales only"
        )
    if container.scale_dtype not in (None, dtype):
        notes.append(
            f"scales are {container.scale_dtype}, as {recipe.format} has them, and were chosen as "
            f"such; a server that computes in another type than that rounds them once more"
        )
    if recipe.format == "gptq" and not symmetric:
        notes.append(
            "GPTQModel refuses asymmetric files in this layout from other writers; "
            "format=gptq_v2 holds the same and is not refused"
        )
    return notes
