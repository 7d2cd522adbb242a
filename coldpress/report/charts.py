"""Plots as inline SVG. Colours come from the page's style, so they follow light and dark mode."""

from collections.abc import Callable, Mapping, Sequence, Sized
from dataclasses import dataclass

from coldpress.report.markup import Markup, element
from coldpress.report.scales import Axis, axis

WIDTH, HEIGHT = 640.0, 260.0
LEFT, RIGHT, TOP, BOTTOM = 64.0, 16.0, 12.0, 40.0
ACROSS = LEFT, WIDTH - RIGHT
"""Where the frame begins and ends from left to right."""
COLOURS = 6
"""Classes c0..c5 of the style; a seventh series starts again, with dashes."""

LONGEST = 32
"""Characters of a row's name; its cells have the whole one."""

Format = Callable[[float], str]


@dataclass(frozen=True)
class Cell:
    """One cell of a heat map; `flagged` ones get an outline."""

    value: float | None
    title: str
    flagged: bool = False


@dataclass(frozen=True)
class Point:
    """One point of a scatter; `spread`: half the length of its vertical bar."""

    name: str
    colour: int
    x: float
    y: float
    spread: float = 0.0


def short(value: float) -> str:
    """Four digits, as in the tables."""
    return f"{value:.4g}"


def heat_map(
    rows: Sequence[str],
    columns: Sequence[int],
    cells: Mapping[tuple[str, int], Cell],
    low: float,
    high: float,
    label: str,
) -> Markup:
    """A cell per row and column; the stronger its colour, the nearer its value is to `high`."""
    labels = [row if len(row) <= LONGEST else f"{row[: LONGEST - 1]}…" for row in rows]
    left = 12 + 6.4 * max(map(len, labels))
    size = max(9.0, min(22.0, (880 - left) / len(columns)))
    parts = [
        element("text", name, x=left - 6, y=(index + 0.72) * size, class_="end")
        for index, name in enumerate(labels)
    ]
    bottom = len(rows) * size + 13
    every = max(1, round(26 / size), -(-len(columns) // 40))
    for index, column in enumerate(columns):
        if index % every == 0:
            at = left + (index + 0.5) * size
            parts.append(element("text", str(column), x=at, y=bottom, class_="mid"))
    for (row, column), cell in cells.items():
        x, y = left + columns.index(column) * size, rows.index(row) * size
        parts.append(_heat_cell(cell, x, y, size - 1, low, high))
    return _svg(left + len(columns) * size + 4, bottom + 6, label, parts)


def _heat_cell(cell: Cell, x: float, y: float, size: float, low: float, high: float) -> Markup:
    title = element("title", cell.title)
    kind = "heat flagged" if cell.flagged else "heat"
    if cell.value is None:
        return element("rect", title, x=x, y=y, width=size, height=size, class_=f"{kind} none")
    share = (cell.value - low) / (high - low) if high > low else 0.5
    return element(
        *("rect", title),
        x=x,
        y=y,
        width=size,
        height=size,
        class_=kind,
        fill_opacity=0.08 + 0.92 * min(1.0, max(0.0, share)),
    )


def line_chart(
    series: Mapping[str, Mapping[int, float]], y_label: str, *, zero: bool = False
) -> Markup:
    """One line per series over layers. A series may be empty, and keeps its colour to itself."""
    xs = sorted({x for line in series.values() for x in line})
    across = Axis(xs[0] - 0.5, xs[-1] + 0.5, LEFT, WIDTH - RIGHT)
    values = [y for line in series.values() for y in line.values()]
    up = axis(values, HEIGHT - BOTTOM, TOP, zero=zero)
    ticks = [tick for tick in across.ticks(8) if tick == round(tick)]
    parts = _frame(across, up, "layer", y_label, ticks, lambda x: f"{x:.0f}", short)
    for index, line in enumerate(series.values()):
        spots = [(across.at(x), up.at(y)) for x, y in sorted(line.items())]
        if not spots:
            continue
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        parts.append(element("polyline", points=path, class_=f"line {_series_class(index)}"))
        if len(spots) == 1:
            x, y = spots[0]
            parts.append(element("circle", cx=x, cy=y, r=3, class_=f"dot {_series_class(index)}"))
    return _svg(WIDTH, HEIGHT, f"{y_label} by layer", parts)


def histogram_chart(
    series: Mapping[str, Sequence[tuple[float, float, float]]], x_label: str, y_label: str
) -> Markup:
    """Steps of (from, to, share) per series, over an axis of equal ratios; empty bins at both ends
    of all series are cut off."""
    used = [(low, high) for bins in series.values() for low, high, share in bins if share > 0]
    across = Axis(min(low for low, _ in used), max(high for _, high in used), *ACROSS, True)
    tops = [share for bins in series.values() for _, _, share in bins]
    up = axis(tops, HEIGHT - BOTTOM, TOP, zero=True, linear=True)
    parts = _frame(across, up, x_label, y_label, across.ticks(), short, _percent)
    for index, bins in enumerate(series.values()):
        spots = [
            (across.at(edge), up.at(share))
            for low, high, share in bins
            if low >= across.low and high <= across.high
            for edge in (low, high)
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
        if path:
            parts.append(element("polyline", points=path, class_=f"line {_series_class(index)}"))
    return _svg(WIDTH, HEIGHT, f"{y_label} by {x_label}", parts)


def _percent(share: float) -> str:
    return f"{share:.3g}" if share == 0 else f"{100 * share:.3g}%"


def scatter(points: Sequence[Point], x_label: str, y_label: str, x_format: Format) -> Markup:
    """Named points with vertical bars."""
    across = axis([point.x for point in points], LEFT, WIDTH - RIGHT)
    up = axis([point.y for point in points], HEIGHT - BOTTOM, TOP)
    parts = _frame(across, up, x_label, y_label, across.ticks(), x_format, short)
    for point in points:
        x, y = across.at(point.x), up.at(point.y)
        kind = _series_class(point.colour)
        if point.spread:
            ends = up.at(point.y - point.spread), up.at(point.y + point.spread)
            parts.append(element("line", x1=x, x2=x, y1=ends[0], y2=ends[1], class_=f"line {kind}"))
        title = element("title", f"{point.name}: {x_format(point.x)}, {short(point.y)}")
        parts.append(element("circle", title, cx=x, cy=y, r=5, class_=f"dot {kind}"))
        beside = {"x": x - 9, "class_": "end"} if x > WIDTH * 0.6 else {"x": x + 9}
        parts.append(element("text", point.name, y=y + 4, **beside))
    return _svg(WIDTH, HEIGHT, f"{y_label} against {x_label}", parts)


def legend(series: Mapping[str, Sized]) -> Markup:
    """Which line is whose."""
    entries = []
    for index, name in enumerate(series):
        if not series[name]:
            continue
        line = element("line", x1=0, x2=24, y1=6, y2=6, class_=f"line {_series_class(index)}")
        mark = element("svg", line, width=24, height=12, aria_hidden="true")
        entries.append(element("span", mark, f" {name}"))
    return element("p", *entries, class_="legend")


def _frame(
    across: Axis,
    up: Axis,
    x_label: str,
    y_label: str,
    x_ticks: Sequence[float],
    x_format: Format,
    y_format: Format,
) -> list[Markup]:
    """Grid lines with their figures, and what the axes mean."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for tick in up.ticks():
        y = up.at(tick)
        parts.append(element("line", x1=LEFT, x2=right, y1=y, y2=y, class_="grid"))
        parts.append(element("text", y_format(tick), x=LEFT - 6, y=y + 4, class_="end"))
    for tick in x_ticks:
        x = across.at(tick)
        parts.append(element("text", x_format(tick), x=x, y=bottom + 16, class_="mid"))
    middle = (LEFT + right) / 2
    parts.append(element("text", x_label, x=middle, y=HEIGHT - 6, class_="mid label"))
    turned = f"rotate(-90 12 {(TOP + bottom) / 2:g})"
    parts.append(
        element("text", y_label, x=12, y=(TOP + bottom) / 2, transform=turned, class_="mid label")
    )
    return parts


def _series_class(index: int) -> str:
    dashes = " dashed" if index >= COLOURS else ""
    return f"c{index % COLOURS}{dashes}"


def _svg(width: float, height: float, label: str, parts: Sequence[Markup]) -> Markup:
    box = f"0 0 {width:.0f} {height:.0f}"
    return element(
        "svg",
        *parts,
        viewBox=box,
        role="img",
        aria_label=label,
        style=f"max-width:{width:.0f}px",
    )
