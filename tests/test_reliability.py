"""docs/RELIABILITY.md names all cases, and only tests that exist."""

import ast
import re
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CASES = [*(f"A{n}" for n in range(1, 14)), *(f"L{n}" for n in range(1, 10))]
CASES += [f"W{n}" for n in range(1, 7)]


def rows() -> dict[str, list[str]]:
    """The tests of each case, `path::test`."""
    text = (ROOT / "docs" / "RELIABILITY.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| ([ALW]\d+) \|[^|]*\|([^|]*)\|$", text, re.MULTILINE)
    return {case: re.findall(r"`([^`]+)`", tests) for case, tests in lines}


@cache
def names_in(path: str) -> frozenset[str]:
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def test_every_case_has_a_test_that_exists() -> None:
    table = rows()
    assert list(table) == CASES
    for case, tests in table.items():
        assert tests, f"{case} has no test"
        for name in tests:
            path, _, test = name.partition("::")
            assert test.startswith("test_") and test in names_in(path), f"{case}: {name}"
