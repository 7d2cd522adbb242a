"""A12: the pool follows the memory that there is."""

from typing import Any, cast

import pytest

from runtime.engine.stats import EngineStats
from runtime.engine.thread import EngineThread
from runtime.worker.memory_watch import RESERVE_BYTES, MemoryWatch

PAGE_BYTES = 1 << 20


class Machine:
    """So much memory for pages; those that are in use take theirs."""

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self.written = 0
        self.limits: list[int] = []

    def available(self) -> int:
        return max(0, RESERVE_BYTES + (self.pages - self.written) * PAGE_BYTES)

    def stats(self) -> EngineStats:
        return EngineStats(pages_written=self.written)

    def limit_pages(self, most: int) -> None:
        self.limits.append(most)
        self.written = min(self.written, most)


def watch(machine: Machine) -> MemoryWatch:
    thread = cast(EngineThread, machine)
    return MemoryWatch(thread, 100, 10, PAGE_BYTES, machine.available)


def test_pages_that_fit_are_left_alone() -> None:
    machine = Machine(pages=200)
    eye = watch(machine)
    for written in (0, 50, 100):
        machine.written = written
        eye.look()
    assert machine.limits == []


def test_the_pool_shrinks_to_what_fits_and_comes_back() -> None:
    machine = Machine(pages=200)
    machine.written = 30
    eye = watch(machine)
    for pages, limits in (
        (60, [60]),  # what is written fits, what was planned does not
        (60, [60]),
        (65, [60]),  # too little to be worth it
        (20, [60, 18]),  # in steps of a thirty-second
        (1, [60, 18, 10]),  # never fewer than one context
        (50, [60, 18, 10, 48]),
        (99, [60, 18, 10, 48, 99]),
        (300, [60, 18, 10, 48, 99, 100]),
    ):
        machine.pages = pages
        eye.look()
        eye.look()
        assert machine.limits == limits


def test_where_nobody_knows_what_is_free_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(pages=0)
    started: list[Any] = []
    monkeypatch.setattr("threading.Thread.start", lambda thread: started.append(thread))
    MemoryWatch(cast(EngineThread, machine), 100, 10, PAGE_BYTES, lambda: 0).start()
    assert started == []
    watch(Machine(pages=5)).start()
    assert len(started) == 1
