"""The report as one HTML page: no script, no file beside it, readable in mail and on paper."""

from collections.abc import Iterable, Mapping, Sequence

from coldpress import __version__
from coldpress.report.artifact import (
    Artifact,
    Evaluation,
    Module,
    layer_bits,
    layer_errors,
    layer_worst,
    place,
)
from coldpress.report.charts import Point, histogram_chart, legend, line_chart, scatter
from coldpress.report.error_map import ERROR_WORDS, error_map, error_range
from coldpress.report.markup import Markup, element, join
from coldpress.report.sources import comparability
from coldpress.report.style import STYLE
from coldpress.report.summary import (
    COLUMNS,
    FIRST_NUMBER,
    QUALITY,
    comparison_row,
    conditions,
    missing,
    quality_row,
    schemes,
    states,
)
from coldpress.tables import human_bytes, show

CONFIDENCE = 1.96
"""Standard errors on either side of a mean that make an interval of 95%, where none is told."""
MODULES_ON_PAGE = 1200
"""Rows of module tables: experts by the thousand would make the page too heavy to mail."""


def html_page(artifacts: Sequence[Artifact]) -> str:
    """The whole page."""
    limit = max(1, MODULES_ON_PAGE // len(artifacts))
    title = f"coldpress report: {', '.join(artifact.name for artifact in artifacts)}"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Markup(STYLE)),
    )
    body = element(
        "body",
        element("h1", "coldpress report"),
        element("p", f"made by coldpress {__version__}", class_="soft"),
        *_states(artifacts, limit),
        *_comparison(artifacts),
        *_distance(artifacts),
        *_scatter(artifacts),
        *_errors(artifacts),
        *_rounding(artifacts),
        *_bits(artifacts),
        *(part for artifact in artifacts for part in _artifact(artifact, limit)),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def table(columns: Sequence[str], rows: Iterable[Markup], first_number: int) -> Markup:
    """A table that scrolls on its own where the window is narrow."""
    heads = [
        element("th", column, class_="number" if index >= first_number else "name")
        for index, column in enumerate(columns)
    ]
    head = element("thead", element("tr", *heads))
    return element("div", element("table", head, element("tbody", *rows)), class_="wide")


def table_row(cells: Sequence[str], first_number: int, mark: str = "") -> Markup:
    found = [
        element("td", cell, class_="number") if index >= first_number else element("td", cell)
        for index, cell in enumerate(cells)
    ]
    return element("tr", *found, class_=mark) if mark else element("tr", *found)


def _states(artifacts: Sequence[Artifact], limit: int) -> list[Markup]:
    """First of all: whatever is not as it was asked for."""
    parts = []
    for artifact in artifacts:
        others = artifact.not_as_asked()
        sentence = f"{artifact.name}: {states(artifact)}"
        marks = {module.mark for module in others}
        mark = "warn" if "warn" in marks else "kept" if marks else "soft"
        parts.append(element("p", sentence, class_=mark))
        if others:
            rows = [
                table_row([module.name, module.scheme, module.state], 3, module.mark)
                for module in others[:limit]
            ]
            parts.append(table(["module", "scheme", "state"], rows, 3))
            parts += _left_out(len(others) - limit)
    return [element("h2", "States of modules"), *parts]


def _comparison(artifacts: Sequence[Artifact]) -> list[Markup]:
    rows = [table_row(comparison_row(artifact), FIRST_NUMBER) for artifact in artifacts]
    parts = [element("h2", "Comparison"), table(COLUMNS, rows, FIRST_NUMBER)]
    parts += [element("p", note, class_="warn") for note in comparability(artifacts)]
    said = [conditions(a.name, a.evaluation) for a in artifacts if a.evaluation is not None]
    said += [f"{artifact.name}: {note}" for artifact in artifacts for note in missing(artifact)]
    said.append(
        "Bits per weight count everything in the files that hold weights. KLD is in nats per "
        "token. Behind ± stands one standard error; tokens per second are decoded ones, with the "
        "number of streams in parentheses."
    )
    return [*parts, element("ul", *(element("li", one) for one in said), class_="soft")]


def _scatter(artifacts: Sequence[Artifact]) -> list[Markup]:
    points = [
        Point(a.name, index, float(a.bytes), e.kld, _half_width(e))
        for index, a in enumerate(artifacts)
        if (e := a.evaluation) is not None and e.kld is not None
    ]
    if len(points) < 2:
        return []
    plot = scatter(points, "size", "KLD mean", lambda value: human_bytes(round(value)))
    caption = "Size against the distance to the baseline; bars are intervals of 95%."
    return [element("h2", "Size and distance"), _figure(plot, caption)]


def _half_width(e: Evaluation) -> float:
    low, high = e.intervals.get("kld", (None, None))
    if e.kld is not None and low is not None and high is not None:
        return max(high - e.kld, e.kld - low, 0.0)
    return CONFIDENCE * (e.kld_se or 0.0)


def _distance(artifacts: Sequence[Artifact]) -> list[Markup]:
    """Quantiles and intervals of every comparison, and histograms laid over each other."""
    rows = [row for artifact in artifacts if (row := quality_row(artifact)) is not None]
    if not rows:
        return []
    parts = [
        element("h2", "Distance to the baseline"),
        table(QUALITY, [table_row(row, 1) for row in rows], 1),
    ]
    bins = {
        a.name: e.histogram.shares() if (e := a.evaluation) is not None and e.histogram else []
        for a in artifacts
    }
    if any(bins.values()):
        plot = histogram_chart(bins, "KLD of a token", "share of tokens")
        caption = (
            "Divergence per token, in bins of equal ratio; what lies beyond the outermost bins is "
            "counted with them."
        )
        parts.append(_figure(join([legend(bins), plot]), caption))
    return parts


def _rounding(artifacts: Sequence[Artifact]) -> list[Markup]:
    """Where rounding was hard: what the solver and the grid had to cope with."""
    conditions = {a.name: layer_worst(a, "condition") for a in artifacts}
    clipped = {a.name: layer_errors(a, "clip_ratio") for a in artifacts}
    drawn = [
        *_lines(conditions, "Hessian condition", "Of the worst module of a layer, after damping."),
        *_lines(clipped, "share of clipped weights", "Mean over the modules of a layer."),
    ]
    return [element("h2", "Conditions of rounding"), *drawn] if drawn else []


def _errors(artifacts: Sequence[Artifact]) -> list[Markup]:
    """A map per artifact, all on one scale, then the means by layer in one plot."""
    parts = [element("h2", "Error by layer and module")]
    found = {error: error_range(artifacts, error) for error in ERROR_WORDS}
    for artifact in artifacts:
        error = artifact.error_name()
        limits = found[error] if error is not None else None
        if error is None or limits is None:
            continue
        drawn = error_map(artifact, error, *limits)
        if drawn is not None:
            caption = (
                f"{artifact.name}: {ERROR_WORDS[error]}, from {limits[0]:.4g} (pale) to "
                f"{limits[1]:.4g} (strong). Outlined: not as asked. Empty: not recorded."
            )
            parts.append(_figure(drawn, caption))
    for error, words in ERROR_WORDS.items():
        lines = {a.name: layer_errors(a, error) for a in artifacts}
        parts += _lines(lines, words, "Mean over the modules of a layer.")
    if len(parts) == 1:
        parts.append(element("p", "No artifact here records errors by module.", class_="soft"))
    return parts


def _bits(artifacts: Sequence[Artifact]) -> list[Markup]:
    lines = {artifact.name: layer_bits(artifact) for artifact in artifacts}
    caption = "All tensors of a layer, with scales, zero points and norms."
    drawn = _lines(lines, "bits per weight", caption, zero=True)
    if not drawn:
        drawn = [element("p", "No artifact here could be opened for its sizes.", class_="soft")]
    return [element("h2", "Bits by layer"), *drawn]


def _lines(
    lines: Mapping[str, Mapping[int, float]], words: str, caption: str, *, zero: bool = False
) -> list[Markup]:
    if not any(lines.values()):
        return []
    plot = line_chart(lines, words, zero=zero)
    return [_figure(join([legend(lines), plot]), f"{words.capitalize()}. {caption}")]


def _figure(plot: Markup, caption: str) -> Markup:
    return element("figure", plot, element("figcaption", caption))


def _artifact(artifact: Artifact, limit: int) -> list[Markup]:
    """The story of one artifact, and all its figures behind a fold."""
    story = {
        "kind": artifact.kind,
        "made from": ", ".join(artifact.made_from) or "-",
        "recipe": artifact.recipe or "-",
        "calibration": artifact.calibration or "-",
        "size": f"{human_bytes(artifact.bytes)} ({artifact.bytes:,} bytes)",
        "tensors": schemes(artifact),
    }
    outside = [t for t in artifact.tensors if place(t.name) is None]
    for tensor in outside:
        size = human_bytes(tensor.bytes)
        story[tensor.name] = f"{size}, {tensor.scheme}, {tensor.bits:.2f} bits per weight"
    entries = [part for key, value in story.items() for part in _entry(key, value)]
    parts = [element("h2", artifact.name), element("dl", *entries)]
    if artifact.modules:
        shown, total = worst_modules(artifact, limit), len(artifact.modules)
        words = (
            f"All {total} modules" if len(shown) == total else f"{len(shown)} of {total} modules"
        )
        rows = [module_table(shown), *_left_out(total - len(shown))]
        parts.append(element("details", element("summary", words), *rows))
    return parts


def worst_modules(artifact: Artifact, limit: int) -> list[Module]:
    """At most `limit` modules, in their order: those that are not as asked, then the worst."""
    error = artifact.error_name()

    def rank(index: int) -> tuple[bool, float, int]:
        module = artifact.modules[index]
        value = None if error is None else module.figures.get(error)
        return module.as_asked, -(value or 0.0), index

    chosen = sorted(sorted(range(len(artifact.modules)), key=rank)[:limit])
    return [artifact.modules[index] for index in chosen]


def _left_out(count: int) -> list[Markup]:
    if count <= 0:
        return []
    words = f"{count:,} more are left out here; 'coldpress report -o report.json' has them all."
    return [element("p", words, class_="soft")]


def _entry(key: str, value: str) -> tuple[Markup, Markup]:
    return element("dt", key), element("dd", value)


def module_table(modules: Sequence[Module]) -> Markup:
    """One row per module with every figure that any of them records."""
    figures = list(dict.fromkeys(key for module in modules for key in module.figures))
    columns = ["module", "scheme", "algorithm", "state", *(f.replace("_", " ") for f in figures)]
    rows = [
        table_row(
            [
                *(module.name, module.scheme, module.algorithm, module.state),
                *(show(figure, module.figures.get(figure)) for figure in figures),
            ],
            4,
            module.mark,
        )
        for module in modules
    ]
    return table(columns, rows, 4)
