"""What quantizing or building would make, from headers alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coldpress.jsonable import to_jsonable
from coldpress.targets import parse_target, plan_payload

if TYPE_CHECKING:
    import numpy as np

    from quant.preflight import Prepared
    from quant.recipe import Recipe


def plan_build(checkpoint: Path, target: str) -> dict[str, Any]:
    """The JSON of `coldpress plan --target`: the file's exact size and every tensor's type."""
    from coldpress.sources import opened_source

    wanted = parse_target(target)
    with opened_source(checkpoint) as source:
        return {"target": target, **plan_payload(wanted, source)}


def plan_quantize(model: Path, recipe: str, overrides: Sequence[str]) -> dict[str, Any]:
    """The JSON of `coldpress plan --recipe`.

    file_bytes: size of the safetensors files with their headers. disk_bytes: estimate of the most
    that the run holds on the disk, with the layers that it keeps for a resumption.
    """
    from coldpress.sources import opened_source
    from quant.preflight import prepare
    from quant.recipe import load_recipe

    loaded = load_recipe(recipe, overrides)
    with opened_source(model, text=False) as source:
        return describe_plan(prepare(source.checkpoint, loaded), loaded)


def describe_plan(prepared: "Prepared", recipe: "Recipe") -> dict[str, Any]:
    """What a prepared run would write, who will read it, and what it takes."""
    from coldpress.servers import judge_servers
    from compile.text_part import TEXT_MODELS
    from quant.format.safetensors_writer import file_sizes
    from quant.kv_cache import KV_CACHE_SCHEMES

    stored = _stored(prepared, recipe)
    files = file_sizes(stored)
    source = prepared.source
    shapes = {module: source.shape(f"{module}.weight") for module in prepared.linears}
    planned: dict[str, Any] = to_jsonable(prepared.plan)
    tensors = planned.pop("tensors")
    planned["format"] = recipe.format
    planned["file_bytes"] = sum(files)
    planned["disk_bytes"] = sum(files) + max(files) + _kept_bytes(prepared, recipe)
    kv_cache = KV_CACHE_SCHEMES[recipe.kv_cache]
    family = str(source.config.get("model_type"))
    family = TEXT_MODELS.get(family, family)
    verdicts = judge_servers(recipe.format, prepared.linears, shapes, kv_cache, family=family)
    planned["servers"] = to_jsonable(verdicts)
    return {**planned, "tensors": tensors}


def _stored(
    prepared: "Prepared", recipe: "Recipe"
) -> "list[tuple[str, np.dtype[Any], tuple[int, ...]]]":
    """(name, dtype, shape) of every stored tensor, in the order of writing: the quantized ones,
    layer by layer, then the rest."""
    from quant.format.containers import CONTAINERS
    from quant.format.layout import float_dtype, stored_parts
    from quant.format.scheme import FloatScheme
    from quant.skeleton import weight_dtype

    source, tasks = prepared.source, prepared.resolution.all_tasks()
    tables, names = prepared.resolution.tables, source.names()
    scales = CONTAINERS[recipe.format].scale_dtype or weight_dtype(source.config)
    first, rest = [], []
    for task in (tables.embeddings, *prepared.resolution.tasks.values(), tables.head):
        if task is None:
            continue
        module = task.module
        rows, columns = source.shape(f"{module}.weight")
        parts = stored_parts(recipe.format, task.scheme, (rows, columns), scales)
        first += [(f"{module}{name}", dtype, shape) for name, dtype, shape in parts]
    for tensor in prepared.plan.tensors:
        scheme = None
        if tensor.name not in names:
            rest.append((tensor.name, float_dtype("float32"), tensor.shape))
        elif tensor.name.removesuffix(".weight") not in tasks:
            scheme = source.scheme(tensor.name)
        if isinstance(scheme, FloatScheme):
            rest.append((tensor.name, float_dtype(scheme.dtype), tensor.shape))
    return [*first, *rest]


def _kept_bytes(prepared: "Prepared", recipe: "Recipe") -> int:
    """Codes of a byte each and float32 scales of every layer, and the activations twice."""
    total = 0
    for module, task in prepared.resolution.tasks.items():
        rows, columns = prepared.source.shape(f"{module}.weight")
        total += rows * (columns + 4 * task.scheme.groups(columns))
    if recipe.needs_calibration:
        tokens = recipe.calibration.samples * recipe.calibration.tokens
        item = prepared.skeleton.compute_dtype.itemsize
        total += 2 * tokens * prepared.skeleton.hidden_size * item
        total += prepared.plan.spooled_bytes
    return total
