"""Ten minutes on a GPU: groups that fail, hang or break off cost their own figures alone."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks import gpu
from benchmarks.on_gpu.group import lines_of
from benchmarks.on_gpu.limits import Limits
from benchmarks.on_gpu.run import Group, run_groups
from benchmarks.on_gpu.table import Report, Row
from benchmarks.on_gpu.tests import failed_test

LIMITS = {"limits": asdict(Limits("a chip", 3e12, 9e14, None, None))}


def row(name: str) -> dict[str, object]:
    return {"row": asdict(Row(name, 1.0, "us"))}


SAYS = {
    "limits": f"print({json.dumps(json.dumps(LIMITS))})",
    "good": f"print('a library says hello'); print({json.dumps(json.dumps(row('one')))})",
    "breaks": f"print({json.dumps(json.dumps(row('two')))}, flush=True); import os; os.abort()",
    "hangs": "import time; time.sleep(99)",
    "unsound": "import json; print(json.dumps({'failed': 'four: it is wrong'}))",
}


def command(group: Group, report: Report) -> list[str]:
    return [sys.executable, "-c", SAYS[group.name]]


def test_each_group_keeps_what_it_said_before_its_end(tmp_path: Path) -> None:
    names = ("limits", "hangs", "breaks", "unsound", "good")
    groups = [Group(name, 3 if name == "hangs" else 60) for name in names]
    report = run_groups(groups, 600, tmp_path, command)
    assert [each.what for each in report.rows] == ["two", "one"]
    assert report.limits is not None and report.limits.device == "a chip"
    hangs, breaks, unsound = report.failed
    assert hangs == "hangs: was ended after 3 s"
    assert breaks.startswith("breaks: ended with -") and unsound == "four: it is wrong"
    kept = json.loads((tmp_path / "gpu.json").read_text())
    assert [each["what"] for each in kept["rows"]] == [each.what for each in report.rows]
    logs = [f"{name}.log" for name in names]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["gpu.json", "gpu.md", *logs])


def test_nothing_starts_after_the_time_is_over(tmp_path: Path) -> None:
    times = iter([0.0, 0.0, 1.0, 11.0, 11.0])
    groups = [Group("limits", 60), Group("good", 60)]
    report = run_groups(groups, 10, tmp_path, command, lambda: next(times))
    assert report.rows == [] and report.failed == ["good: no time was left"]


def test_without_limits_nothing_can_be_a_fraction_of_them(tmp_path: Path) -> None:
    report = run_groups([Group("good", 60)], 600, tmp_path, command)
    assert report.rows == [] and "no limits" in report.failed[0]


def test_a_cell_that_fails_is_named_and_the_next_one_measured() -> None:
    def wrong() -> list[Row]:
        raise RuntimeError("illegal memory access")

    lines = list(lines_of([("first", wrong), ("second", lambda: [Row("second", 2.0, "us")])]))
    assert lines[0] == {"failed": "first: RuntimeError: illegal memory access"}
    assert lines[1]["row"]["what"] == "second"


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("tests/a.py::test_b[x y] FAILED   [ 10%]\n", "tests/a.py::test_b[x y]"),
        ("tests/a.py::test_b PASSED [ 10%]\n", None),
        ("E   assert 1\n", None),
    ],
)
def test_failed_tests_are_read_from_what_pytest_says(line: str, name: str | None) -> None:
    assert failed_test(line) == name


def test_the_groups_begin_with_limits_and_tests_and_fit_together() -> None:
    assert [group.name for group in gpu.GROUPS[:3]] == ["limits", "tests", "model:1.1B:w4a16"]
    first = sum(group.seconds for group in gpu.GROUPS[:9])
    assert first <= gpu.BUDGET_SECONDS, "what matters most could be left out"
