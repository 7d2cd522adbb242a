"""What goes to stdout, what goes to stderr, and how progress shows."""

import io
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from coldpress.console import Console
from coldpress.jsonable import to_jsonable
from coldpress.progress import ProgressReporter
from coldpress.tables import human_bytes, pairs_table, rows_table


@dataclass
class Sample:
    where: Path
    rate: float
    counts: tuple[int, ...]


def test_json_holds_one_object_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.json = True
    console.note("working")
    console.result(Sample(Path("a/b"), float("nan"), (1, 2)), lambda: "never shown")
    out, err = capsys.readouterr()
    assert json.loads(out) == {"where": "a/b", "rate": None, "counts": [1, 2]}
    assert err == "working\n"


def test_an_error_is_json_only_where_no_result_was(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console()
    console.json = True
    console.error("no such file", 2)
    assert json.loads(capsys.readouterr().out) == {"error": "no such file", "exit_code": 2}
    console.result({"ok": False}, lambda: "")
    console.error("gate not met", 1)
    out, err = capsys.readouterr()
    assert json.loads(out) == {"ok": False}
    assert err == "error: gate not met\n"


def test_jsonable_knows_what_the_rooms_report() -> None:
    value = {
        "scalar": np.float32(0.5),
        "array": np.arange(3),
        "set": {"b", "a"},
        "deep": [{"p": Path("x")}],
        "inf": float("inf"),
        "flag": True,
        "none": None,
    }
    assert to_jsonable(value) == {
        "scalar": 0.5,
        "array": [0, 1, 2],
        "set": ["a", "b"],
        "deep": [{"p": "x"}],
        "inf": None,
        "flag": True,
        "none": None,
    }


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_progress_off_a_terminal_is_lines_and_only_for_long_work() -> None:
    clock, stream = Clock(), io.StringIO()
    reporter = ProgressReporter("pressing", stream, clock)
    for done in range(40):
        clock.now += 1
        reporter(done + 1, 40, f"layer {done}")
    reporter.close()
    lines = stream.getvalue().splitlines()
    assert lines == [
        "pressing: 10/40 layer 9, 30 s left",
        "pressing: 20/40 layer 19, 20 s left",
        "pressing: 30/40 layer 29, 10 s left",
        "pressing: 40/40 layer 39, 0 s left",
    ]


def test_progress_on_a_terminal_is_a_bar_after_two_seconds() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    clock, stream = Clock(), Terminal()
    reporter = ProgressReporter("pressing", stream, clock)
    clock.now += 1
    reporter(1, 4, "layer 0")
    assert stream.getvalue() == ""
    clock.now += 2
    reporter(2, 4, "layer 1")
    reporter.close()
    assert "pressing" in stream.getvalue() and "2/4" in stream.getvalue()


def rendered(table: object) -> str:
    from rich.console import Console as RichConsole

    stream = io.StringIO()
    RichConsole(file=stream, width=100).print(table)
    return stream.getvalue()


def test_tables_show_units_and_nested_figures() -> None:
    text = rendered(pairs_table("model", {"bytes": 1_500_000, "kld": {"mean": 0.01234}, "x": None}))
    assert "1.5 MB" in text and "kld.mean" in text and "0.01234" in text
    text = rendered(rows_table("t", ["name", "bytes"], [["a", 12], ["b", 3_000]]))
    assert "12 B" in text and "3.0 kB" in text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (10**9, "1.0 GB"), (10**13, "10.0 TB")],
)
def test_human_bytes(size: int, text: str) -> None:
    assert human_bytes(size) == text
