"""A confined process that is at work for as long as a test wants."""

import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from runtime.confined.pool import ConfinedPool
from tests.waiting import eventually

Result = TypeVar("Result")


@contextmanager
def halted(pool: ConfinedPool, work: Callable[[], Result]) -> Iterator[Future[Result]]:
    """The pool's one warm process has been given `work` and does none of it before the end."""
    (pid,) = pool.pids
    os.kill(pid, signal.SIGSTOP)
    with ThreadPoolExecutor(1) as thread:
        try:
            working = thread.submit(work)
            eventually(lambda: not pool._idle)
            yield working
        finally:
            os.kill(pid, signal.SIGCONT)


def processor_seconds(pid: int) -> float:
    """What a process has used so far, in hundredths."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
