"""The room speaks ints, lists and numpy: nothing heavy, no event loop, no HTTP."""

import ast
import sys
from pathlib import Path

import pytest

import runtime.engine

FILES = sorted(Path(runtime.engine.__path__[0]).glob("*.py"))
FORBIDDEN = {"asyncio", "http", "socket", "multiprocessing"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_imports(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        match node:
            case ast.Import(names=names):
                modules = [name.name for name in names]
            case ast.ImportFrom(module=str(module), level=0):
                modules = [module]
            case ast.ImportFrom():
                pytest.fail(f"relative import at line {node.lineno}")
            case _:
                continue
        for module in modules:
            top = module.split(".")[0]
            assert top not in FORBIDDEN
            assert (
                top in sys.stdlib_module_names
                or top == "numpy"
                or module.startswith("runtime.engine.")
            ), module


def test_only_the_thread_has_a_clock() -> None:
    users = {path.name for path in FILES if "import time" in path.read_text()}
    assert users == {"thread.py"}
