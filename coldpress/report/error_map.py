"""The errors of an artifact as a map: a column per layer, a row per part."""

from collections.abc import Sequence

from coldpress.report.artifact import Artifact, Module, place
from coldpress.report.charts import Cell, heat_map
from coldpress.report.markup import Markup

ERROR_WORDS = {
    "output_error": "relative error of the output",
    "weight_error": "relative error of the weights",
}
MAX_PARTS = 40
"""Rows of a map; a model with more kinds of modules keeps its table."""


def error_range(artifacts: Sequence[Artifact], error: str) -> tuple[float, float] | None:
    """Least and greatest error of modules in layers, so that maps share one scale."""
    values = [
        value
        for artifact in artifacts
        for module in artifact.modules
        if place(module.name) is not None and (value := module.figures.get(error)) is not None
    ]
    return (min(values), max(values)) if values else None


def error_map(artifact: Artifact, error: str, low: float, high: float) -> Markup | None:
    """None where no module lies in a layer."""
    groups: dict[tuple[str, int], list[Module]] = {}
    for module in artifact.modules:
        where = place(module.name)
        if where is not None:
            groups.setdefault((where[1], where[0]), []).append(module)
    parts = list(dict.fromkeys(part for part, _ in groups))[:MAX_PARTS]
    if not parts:
        return None
    cells = {key: _cell(group, error) for key, group in groups.items() if key[0] in parts}
    layers = sorted({layer for _, layer in cells})
    label = f"{ERROR_WORDS[error]} of {artifact.name}, by layer and module"
    return heat_map(parts, layers, cells, low, high, label)


def _cell(modules: Sequence[Module], error: str) -> Cell:
    """Several modules (experts) share a cell, which shows the worst of them."""
    known = [m for m in modules if m.figures.get(error) is not None]
    worst = max(known, key=lambda m: m.figures[error] or 0.0, default=modules[0])
    value = worst.figures.get(error)
    title = f"{worst.name}: {'not recorded' if value is None else f'{value:.4g}'}"
    if len(modules) > 1:
        title += f", the worst of {len(modules)}"
    others = [module for module in modules if not module.as_asked]
    if others:
        title += f"; {others[0].state}"
    return Cell(value, title, flagged=bool(others))
