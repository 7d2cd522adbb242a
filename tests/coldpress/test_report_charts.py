"""Plots: every figure lands inside, in order, and round figures stand at the axes."""

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldpress.report.charts import HEIGHT, WIDTH, Cell, Point, heat_map, line_chart, scatter
from coldpress.report.markup import Markup, element
from coldpress.report.scales import axis

NUMBERS = st.floats(-1e30, 1e30) | st.floats(0, 1) | st.sampled_from([0.0, 1e-300, 5e-324])


@given(st.lists(NUMBERS, min_size=1, max_size=8), st.booleans())
def test_an_axis_holds_its_values_in_order(values: list[float], zero: bool) -> None:
    found = axis(values, 10.0, 110.0, zero=zero)
    places = [found.at(value) for value in sorted(values)]
    assert places == sorted(places)
    assert all(10.0 <= place <= 110.0 for place in places)
    ticks = found.ticks()
    assert len(ticks) <= 16
    # One rounding of a step times its index is all that a round figure may be off.
    room = (found.high - found.low) * 1e-6
    assert all(found.low - room <= tick <= found.high + room for tick in ticks)


@given(st.lists(st.floats(0.001, 1000), min_size=2, max_size=2, unique=True))
def test_an_axis_of_measured_figures_has_ticks(values: list[float]) -> None:
    low, high = sorted(values)
    if high - low > 1e-9 * high:
        assert len(axis(values, 0.0, 1.0).ticks()) >= 2


def coordinates(text: str) -> list[tuple[float, float]]:
    points = re.findall(r'points="([^"]*)"', text)
    return [(float(x), float(y)) for line in points for x, y in re.findall(r"(\S+),(\S+)", line)]


def test_a_line_goes_through_its_points() -> None:
    text = line_chart({"a": {0: 1.0, 1: 3.0, 5: 2.0}, "none": {}, "b": {0: 3.0, 5: 1.0}}, "bits")
    first, second, third, *other = coordinates(text)
    assert first[0] < second[0] < third[0] and second[1] < third[1] < first[1]
    # Equal figures at equal heights, whichever series they belong to.
    assert other == [(first[0], second[1]), (third[0], first[1])]
    # The empty series keeps its colour: b is the third.
    assert text.count('class="line c2"') == 1 and "c1" not in text


@given(
    st.lists(
        st.builds(
            Point,
            name=st.text(max_size=5),
            colour=st.integers(0, 20),
            x=st.integers(0, 10**15).map(float),
            y=st.floats(0, 20),
            spread=st.floats(0, 5),
        ),
        min_size=1,
        max_size=5,
    )
)
def test_a_scatter_stays_in_its_frame(points: list[Point]) -> None:
    text = scatter(points, "size", "KLD", str)
    parser = Numbers()
    parser.feed(text)
    assert parser.circles == len(points)
    assert parser.numbers and all(0 <= value <= WIDTH for value in parser.numbers)


class Numbers(HTMLParser):
    """Every coordinate of a drawing."""

    def __init__(self) -> None:
        super().__init__()
        self.circles = 0
        self.numbers: list[float] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.circles += tag == "circle"
        known = {"x", "y", "x1", "x2", "y1", "y2", "cx", "cy"}
        self.numbers += [float(value or "nan") for name, value in attrs if name in known]
        assert all(n not in ("y", "y1", "y2", "cy") or float(v or 0) <= HEIGHT for n, v in attrs)


def test_a_heat_map_goes_from_pale_to_strong() -> None:
    cells = {("a", layer): Cell(float(layer), f"cell {layer}") for layer in range(5)}
    cells["a", 7] = Cell(None, "unknown", flagged=True)
    text = heat_map(["a"], [0, 1, 2, 3, 4, 7], cells, 0.0, 4.0, "errors")
    shades = [float(found) for found in re.findall(r'fill-opacity="([^"]*)"', text)]
    assert shades == pytest.approx([0.08, 0.31, 0.54, 0.77, 1.0])
    assert 'class="heat flagged none"><title>unknown</title>' in text


def test_one_value_is_a_map_too() -> None:
    assert 'fill-opacity="0.54"' in heat_map(["a"], [3], {("a", 3): Cell(1.0, "")}, 1.0, 1.0, "")


@given(st.text())
def test_markup_gives_texts_back(value: str) -> None:
    class Reader(HTMLParser):
        found = ""
        attribute = ""

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            self.attribute = attrs[0][1] or ""

        def handle_data(self, data: str) -> None:
            self.found += data

    reader = Reader()
    reader.feed(element("p", value, title=value))
    reader.close()
    kept = re.sub(
        "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", "\ufffd", value
    )
    assert reader.found == kept and reader.attribute == kept


def test_markup_is_not_escaped_twice() -> None:
    assert element("p", element("b", "a & b"), Markup("<br>")) == "<p><b>a &amp; b</b><br></p>"
