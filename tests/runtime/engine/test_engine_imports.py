"""What `tests/test_imports.py` cannot see: the engine's waiting and its time are not its own."""

import re
from pathlib import Path

import runtime.engine

FILES = sorted(Path(runtime.engine.__path__[0]).glob("*.py"))


def test_only_the_thread_knows_threads_and_clocks_are_injected() -> None:
    for module in ("datetime", "threading"):
        users = [path.name for path in FILES if f"import {module}" in path.read_text()]
        assert set(users) <= {"thread.py", "turns.py"}
    for path in FILES:
        text = path.read_text().replace("clock: Callable[[], float] = time.monotonic", "")
        assert not re.search(r"\btime\.[a-z]", text), f"{path.name} reads a clock of its own"


def test_no_event_loop_and_no_network() -> None:
    for module in ("asyncio", "http", "socket", "multiprocessing"):
        assert not [path.name for path in FILES if f"import {module}" in path.read_text()]
