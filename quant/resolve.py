"""From a recipe and a model's linears to one task per linear, before any weight is read."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from quant.format.containers import CONTAINERS
from quant.format.errors import RecipeError
from quant.format.ggml_mix import facts_of
from quant.fp8_blocks import BLOCK, unfit_for_blocks
from quant.recipe import GroupSize, Recipe, SchemeSpec
from quant.schemes import ggml_scheme, scheme_of
from quant.tables import NO_TABLES, TableTasks
from quant.tasks import Algorithm, LinearTask

_GROUP_SIZES: tuple[Literal[128, 64, 32, 16], ...] = (128, 64, 32, 16)


ONE_PER_ROW = "one scale per row"
"""How the reason begins where no group or block fits."""


@dataclass(frozen=True)
class Resolution:
    """tasks: by module name. kept: why each other linear stays as it is. reasons: why each task
    has the scheme that it has. tables: tasks outside the decoder layers."""

    tasks: dict[str, LinearTask]
    kept: dict[str, str]
    reasons: dict[str, str]
    tables: TableTasks = NO_TABLES

    def all_tasks(self) -> dict[str, LinearTask]:
        """Those of the decoder layers and of the tables."""
        return self.tasks | self.tables.by_module()


def resolve(
    recipe: Recipe,
    widths: Mapping[str, int],
    others: Iterable[str],
    config: Mapping[str, Any] | None = None,
    tables: TableTasks = NO_TABLES,
    routers: Iterable[str] = (),
    heights: Mapping[str, int] | None = None,
) -> Resolution:
    """Decide for every linear of the decoder layers.

    widths: input width by module name. others: linears outside the layers, such as lm_head, which
    patterns may name but which stay in 16 bit. routers: modules that choose experts, likewise.
    config: the model's config.json, which mixes of ggml types look at. tables: what is to be done
    outside the layers. heights: output width by module name; without, all are whole blocks.
    Raises RecipeError for a pattern that matches nothing, or targets that are all ignored.

    Group size: all linears of one scheme get the same size, the largest of 128, 64, 32 and 16 that
    is not above the one asked for and divides the width of each of them; servers then build every
    fused layer from one scheme. A width that even 16 does not divide is left out of that choice and
    gets one scale per row, and so does a linear that blocks of FP8 do not fit (`quant.fp8_blocks`).
    """
    outside, routing = set(others), list(routers)
    _require_matches(recipe, [*widths, *outside, *routing])
    kept: dict[str, str] = {}
    asked: dict[str, tuple[SchemeSpec, Algorithm]] = {}
    for module in widths:
        if not _any_match(recipe.targets, module):
            kept[module] = "no target pattern matches"
        elif ignored := next((p for p in recipe.ignore if matches(p, module)), None):
            kept[module] = f"ignored by '{ignored}'"
        else:
            asked[module] = _asked(recipe, module)
    if not asked:
        raise RecipeError("the recipe quantizes nothing: every target is ignored")
    for module in outside - tables.by_module().keys():
        kept[module] = "outside the decoder layers"
    for module in routing:
        kept[module] = "chooses among experts, where a small error has large effects"
    tasks, reasons = {}, {}
    sizes = _common_sizes(asked, widths)
    unfit = _unfit(recipe, asked, widths, heights or {})
    for module, (spec, algorithm) in asked.items():
        if spec.type == "ggml":
            blocks = ggml_scheme(spec, module, widths[module], facts_of(config or {}))
            if blocks is None:
                kept[module] = f"no block of {spec.ggml_type} fills rows of {widths[module]}"
            else:
                tasks[module] = LinearTask(module, blocks, algorithm)
                reasons[module] = f"as llama.cpp deals out {spec.ggml_type}"
            continue
        size = "channel" if module in unfit else _fit(sizes[spec], widths[module])
        tasks[module] = LinearTask(module, scheme_of(spec, size), algorithm)
        reasons[module] = (
            f"{ONE_PER_ROW}: {unfit[module]}"
            if module in unfit
            else _reason(spec.group_size, size, widths[module])
        )
    reasons |= dict.fromkeys(tables.by_module(), "as the recipe asks")
    return Resolution(tasks, kept, reasons, tables)


def matches(pattern: str, module: str) -> bool:
    """True when `pattern` (see Recipe) names `module`. Raises RecipeError for a bad expression."""
    if not pattern.startswith("re:"):
        return fnmatchcase(module, pattern)
    try:
        return re.fullmatch(pattern[3:], module) is not None
    except re.error as error:
        raise RecipeError(f"pattern '{pattern}' is no regular expression ({error})") from error


def _any_match(patterns: Iterable[str], module: str) -> bool:
    return any(matches(pattern, module) for pattern in patterns)


def _require_matches(recipe: Recipe, modules: list[str]) -> None:
    patterns = [
        *(("targets", p) for p in recipe.targets),
        *(("ignore", p) for p in recipe.ignore),
        *(("overrides", o.pattern) for o in recipe.overrides),
    ]
    unmatched = [
        f"'{pattern}' under '{key}'"
        for key, pattern in patterns
        if not any(matches(pattern, module) for module in modules)
    ]
    if unmatched:
        subject = "pattern {} matches" if len(unmatched) == 1 else "patterns {} match"
        raise RecipeError(
            f"{subject.format(', '.join(unmatched))} no linear of the model; its linears have "
            f"names like '{modules[0]}'"
        )


def _asked(recipe: Recipe, module: str) -> tuple[SchemeSpec, Algorithm]:
    spec, algorithm = recipe.scheme, recipe.algorithm
    for override in recipe.overrides:
        if matches(override.pattern, module):
            spec = override.scheme or spec
            algorithm = override.algorithm or algorithm
    return spec, algorithm


def _common_sizes(
    asked: Mapping[str, tuple[SchemeSpec, Algorithm]], widths: Mapping[str, int]
) -> dict[SchemeSpec, GroupSize]:
    common: dict[SchemeSpec, GroupSize] = {}
    for module, (spec, _) in asked.items():
        size = common.get(spec, spec.group_size)
        fitted = _fit(size, widths[module])
        common[spec] = size if fitted == "channel" else fitted
    return common


def _unfit(
    recipe: Recipe,
    asked: Mapping[str, tuple[SchemeSpec, Algorithm]],
    widths: Mapping[str, int],
    heights: Mapping[str, int],
) -> dict[str, str]:
    """Why linears that are to have blocks cannot. Raises RecipeError naming them all where the
    format has blocks alone."""
    blocks = {
        module: (spec, (heights.get(module, BLOCK), widths[module]))
        for module, (spec, _) in asked.items()
        if spec.type == "fp8" and spec.group_size == "block"
    }
    for spec in {spec for spec, _ in blocks.values()}:
        scheme_of(spec, "block")
    if recipe.format != "fp8":
        return unfit_for_blocks({module: shape for module, (_, shape) in blocks.items()})
    problems = {
        f"*.{module.rpartition('.')[2]}": problem
        for module, (spec, shape) in blocks.items()
        if (problem := CONTAINERS["fp8"].check(scheme_of(spec, "block"), shape))
    }
    if problems:
        pattern, problem = next(iter(problems.items()))
        raise RecipeError(
            f"format 'fp8' has blocks alone, and {', '.join(problems)} cannot have them "
            f"({pattern}: {problem}): leave them in 16 bit by 'ignore', or choose "
            "format=compressed-tensors, where they get one scale per row"
        )
    return {}


def _fit(size: GroupSize, width: int) -> GroupSize:
    """The largest group size up to `size` that divides `width`, or "channel"."""
    if isinstance(size, str):
        return size
    return next((s for s in _GROUP_SIZES if s <= size and width % s == 0), "channel")


def _reason(asked: GroupSize, got: GroupSize, width: int) -> str:
    if asked == got:
        return "as the recipe asks"
    if got == "channel":
        return f"{ONE_PER_ROW}: no group of {asked} or less divides {width} columns"
    return f"groups of {got}: {asked} does not divide every linear of this scheme"
