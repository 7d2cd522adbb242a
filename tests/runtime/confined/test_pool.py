import os
import platform
import signal
import socket
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from runtime.confined.messages import Refused
from runtime.confined.pool import Busy, ConfinedPool, Overrun
from tests.runtime.confined.harness import halted
from tests.waiting import PATIENCE_SECONDS

TASKS = "tests.runtime.confined.tasks"
FILTERED = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")


@pytest.fixture(scope="module")
def pool() -> Iterator[ConfinedPool]:
    pool = ConfinedPool(TASKS, seconds=20)
    yield pool
    pool.close()


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def test_what_goes_in_comes_out(pool: ConfinedPool) -> None:
    value = {"a": [1, 2.5, None, True], "é\ud800": "x" * 300_000}
    assert pool.call("echo", value) == value
    assert pool.call("thread") == 7


def test_the_process_is_another_one_and_stays_warm(pool: ConfinedPool) -> None:
    pid = pool.call("pid")
    assert pid != os.getpid() and pool.call("pid") == pid and pool.pids == [pid]


def test_a_tasks_refusal_keeps_its_words_and_its_process(pool: ConfinedPool) -> None:
    pid = pool.call("pid")
    with pytest.raises(Refused, match="no, thank you") as caught:
        pool.call("refuse")
    assert caught.value.kind == "polite"
    for task, kind in (("fail", "bug"), ("recurse", "recursion")):
        with pytest.raises(Refused) as caught:
            pool.call(task)
        assert caught.value.kind == kind
    assert pool.call("pid") == pid


def test_memory_is_bounded(pool: ConfinedPool) -> None:
    assert pool.call("swell", 10) == 10 << 20
    with pytest.raises(Refused) as caught:
        pool.call("swell", 2000)
    assert caught.value.kind == "memory"


@pytest.mark.parametrize("task", ["spin", "kill_itself"])
def test_what_overruns_is_killed_and_replaced(task: str) -> None:
    pool = ConfinedPool(TASKS, seconds=0.6)
    pool.start()
    pid = pool.pids[0]
    with pytest.raises(Overrun):
        pool.call(task)
    assert is_gone(pid), "the processor would go on turning"
    assert pool.pids != [pid] and pool.overruns == 1
    pool.close()


def test_time_that_others_take_from_it_does_not_count() -> None:
    """The process stands still for far longer than its work may take, as on a busy machine."""
    pool = ConfinedPool(TASKS, seconds=0.2, patience=PATIENCE_SECONDS)
    pid = pool.call("pid")
    with halted(pool, partial(pool.call, "pid")) as working:
        time.sleep(0.5)
        assert not working.done()
    assert working.result() == pid and pool.overruns == 0
    pool.close()


def test_what_stands_still_is_killed_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = ConfinedPool(TASKS, seconds=PATIENCE_SECONDS)
    os.kill(pool.call("pid"), signal.SIGSTOP)
    monkeypatch.setattr(pool, "seconds", 0.1)
    monkeypatch.setattr(pool, "_patience", 0.1)
    with pytest.raises(Overrun):
        pool.call("pid")
    pool.close()


def test_who_waits_too_long_is_told_so() -> None:
    pool = ConfinedPool(TASKS, seconds=PATIENCE_SECONDS, patience=0.05)
    pid = pool.call("pid")
    with halted(pool, partial(pool.call, "pid")) as working:
        with pytest.raises(Busy):
            pool.call("pid")
        assert not working.done()
    assert working.result() == pid
    assert pool.call("echo", 1) == 1
    pool.close()


def test_a_second_process_serves_while_the_first_is_busy() -> None:
    pool = ConfinedPool(TASKS, size=2, seconds=PATIENCE_SECONDS)
    first = pool.call("pid")
    with halted(pool, partial(pool.call, "pid")) as working:
        assert pool.call("pid") != first
        assert not working.done()
    assert working.result() == first and len(pool.pids) == 2
    pids = pool.pids
    pool.close()
    assert all(map(is_gone, pids)) and pool.pids == []


@pytest.mark.skipif(not FILTERED, reason="system calls are filtered on Linux only")
def test_files_network_and_programs_are_out_of_reach(pool: ConfinedPool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        for task, arguments in (
            ("read", ["/etc/hostname"]),
            ("connect", [server.getsockname()[1]]),
            ("run_program", []),
        ):
            with pytest.raises(Refused, match="PermissionError"):
                pool.call(task, *arguments)
        server.settimeout(0)
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_child_ends_with_its_parent(pool: ConfinedPool) -> None:
    lone = ConfinedPool(TASKS)
    pid = lone.call("pid")
    (child,) = lone._all
    child._link.close()
    assert child._process.wait(10) == 0 and is_gone(pid)
