"""The report as Markdown, for a pull request or a wiki."""

import re
from collections.abc import Sequence

from coldpress.report.artifact import ERRORS, Artifact, layer_bits, layer_errors
from coldpress.report.sources import comparability
from coldpress.report.summary import (
    COLUMNS,
    FIRST_NUMBER,
    QUALITY,
    comparison_row,
    conditions,
    missing,
    quality_row,
    states,
)

_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~&])")


def markdown(artifacts: Sequence[Artifact]) -> str:
    """States, comparison, and errors and bits by layer."""
    lines = ["# coldpress report", "", "## States of modules", ""]
    for artifact in artifacts:
        lines.append(f"- {_plain(artifact.name)}: {states(artifact)}")
        lines += [
            f"  - **{_plain(module.name)}**: {_plain(module.state)}"
            for module in artifact.not_as_asked()
        ]
    lines += ["", "## Comparison", ""]
    lines += _table(COLUMNS, [comparison_row(artifact) for artifact in artifacts], FIRST_NUMBER)
    quality = [row for artifact in artifacts if (row := quality_row(artifact)) is not None]
    if quality:
        lines += ["", "## Distance to the baseline", "", *_table(QUALITY, quality, 1)]
    notes = [f"**{note}**" for note in comparability(artifacts)]
    notes += [
        _plain(conditions(a.name, a.evaluation)) for a in artifacts if a.evaluation is not None
    ]
    notes += [_plain(f"{a.name}: {note}") for a in artifacts for note in missing(a)]
    lines += ["", *(f"- {note}" for note in notes)]
    for artifact in artifacts:
        lines += _layers(artifact)
    return "\n".join(lines) + "\n"


def _layers(artifact: Artifact) -> list[str]:
    """Means by layer; nothing where neither errors nor sizes are known."""
    columns = {error.replace("_", " "): layer_errors(artifact, error) for error in ERRORS}
    columns["bits/weight"] = layer_bits(artifact)
    known = {name: column for name, column in columns.items() if column}
    layers = sorted({layer for column in known.values() for layer in column})
    rows = [
        [str(layer), *(_figure(column.get(layer)) for column in known.values())] for layer in layers
    ]
    if not rows:
        return []
    return ["", f"## {_plain(artifact.name)} by layer", "", *_table(["layer", *known], rows, 0)]


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], first_number: int) -> list[str]:
    marks = ["---:" if index >= first_number else "---" for index in range(len(columns))]
    lines = [list(columns), marks, *([_plain(cell) for cell in row] for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def _plain(value: str) -> str:
    """A text from anywhere in one line, without meaning to Markdown or HTML."""
    visible = "".join(char if char.isprintable() else " " for char in value)
    return _SPECIAL.sub(r"\\\1", visible)
