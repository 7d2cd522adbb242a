"""What came out: as JSON for machines, as Markdown for people."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.quality.contest import Row
from benchmarks.quality.scores import KLD, Estimate, ratio

Rows = Mapping[str, Sequence[Row]]
"""By the model's name."""

HEADER = (
    "| row | makes | seconds | CPU s | MB | perplexity | KLD | top-1 |",
    "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
)
DUEL_HEADER = (
    "| row | against | model | KLD ratio | goal | perplexity ratio | seconds ratio | bytes ratio |",
    "| --- | --- | --- | ---: | ---: | ---: | ---: | ---: |",
)


def as_json(rows: Rows, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Everything but the scores by position, which lie beside the artifacts."""
    return {
        **settings,
        "models": {model: [_row_json(row) for row in found] for model, found in rows.items()},
        "duels": [duel for model, found in rows.items() for duel in duels(model, found)],
    }


def as_markdown(rows: Rows) -> str:
    """A table per model, then every duel, then what went wrong."""
    parts: list[str] = []
    for model, found in rows.items():
        parts += [f"### {model}", "", *HEADER, *(_row_line(row, found) for row in found), ""]
    held = [duel for model, found in rows.items() for duel in duels(model, found)]
    if held:
        parts += ["### Side by side", "", *DUEL_HEADER, *map(_duel_line, held), *_means(held), ""]
    problems = [
        f"- {model}, {row.contestant.name}: {row.problem}"
        for model, found in rows.items()
        for row in found
        if row.problem
    ]
    return "\n".join([*parts, *(["### Failed", "", *problems, ""] if problems else [])])


def duels(model: str, rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Each row against its rival where both were scored: ratios, ours over theirs."""
    by_name = {row.contestant.name: row for row in rows}
    found = []
    for row in rows:
        rival = by_name.get(row.contestant.rival or "")
        if rival is not None and row.scores is not None and rival.scores is not None:
            found.append(_duel(model, row, rival))
    return found


def _duel(model: str, row: Row, rival: Row) -> dict[str, Any]:
    assert row.scores is not None and rival.scores is not None
    assert row.summary is not None and rival.summary is not None
    assert row.made is not None and rival.made is not None
    return {
        "row": row.contestant.name,
        "against": rival.contestant.name,
        "model": model,
        "kld_ratio": asdict(ratio(row.scores[:, KLD], rival.scores[:, KLD])),
        "goal": row.contestant.goal,
        "perplexity_ratio": row.summary.perplexity / rival.summary.perplexity,
        "seconds_ratio": row.made.seconds / rival.made.seconds,
        "bytes_ratio": row.weight_bytes / rival.weight_bytes,
    }


def _row_json(row: Row) -> dict[str, Any]:
    made = row.made
    return {
        "row": row.contestant.name,
        "tool": row.contestant.tool,
        "python": row.python,
        "makes": row.contestant.makes,
        "words": list(row.contestant.words),
        "seconds": made and made.seconds,
        "cpu_seconds": made and made.cpu_seconds,
        "peak_mib": made and made.peak_mib,
        "load": made and made.load,
        "directory": made and made.directory,
        "bytes": row.weight_bytes,
        **(asdict(row.summary) if row.summary else {}),
        "problem": row.problem,
    }


def _row_line(row: Row, rows: Sequence[Row]) -> str:
    made, summary = row.made, row.summary
    seconds = [f"{made.seconds:.0f}", f"{made.cpu_seconds:.0f}"] if made else ["", ""]
    size = f"{row.weight_bytes / 1e6:.1f}" if row.weight_bytes else ""
    if summary is None:
        scored = ["failed", "", ""]
    else:
        relative = _relative(row, rows)
        scored = [
            f"{summary.perplexity:.3f}{relative}",
            _estimate(Estimate(summary.kld.mean, summary.kld.se)),
            f"{100 * summary.top1:.1f} %",
        ]
    return _line([row.contestant.name, row.contestant.makes, *seconds, size, *scored])


def _relative(row: Row, rows: Sequence[Row]) -> str:
    """Perplexity over the float model's, where that was scored."""
    base = next((one.summary for one in rows if one.contestant.name == "float"), None)
    if base is None or row.summary is None or row.summary is base:
        return ""
    return f" ({row.summary.perplexity / base.perplexity:.3f} x)"


def _duel_line(duel: Mapping[str, Any]) -> str:
    goal = "" if duel["goal"] is None else f"<= {duel['goal']:g}"
    ratios = [f"{duel[f'{what}_ratio']:.3f}" for what in ("perplexity", "seconds", "bytes")]
    kld = _estimate(Estimate(**duel["kld_ratio"]))
    return _line([duel["row"], duel["against"], duel["model"], kld, goal, *ratios])


def _means(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """The geometric mean of each duel's KLD ratio, where it was fought on several models."""
    lines = []
    for name in dict.fromkeys(duel["row"] for duel in found):
        same = [duel for duel in found if duel["row"] == name]
        if len(same) > 1:
            mean = math.exp(_mean(math.log(duel["kld_ratio"]["mean"]) for duel in same))
            words = [f"**{name}**", same[0]["against"], f"mean of {len(same)}", f"**{mean:.3f}**"]
            lines.append(_line([*words, "", "", "", ""]))
    return lines


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return sum(listed) / len(listed)


def _estimate(value: Estimate) -> str:
    return f"{value.mean:.3g} +- {value.se:.2g}"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
