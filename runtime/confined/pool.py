"""A few warm child processes that do untrusted work; one that overruns is killed and replaced."""

import atexit
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from math import ceil
from pathlib import Path
from typing import Any

from runtime.confined.messages import Refused, receive, send

_ROOT = Path(__file__).resolve().parents[2]
_START_SECONDS = 30.0
_BOOT = (
    "import sys; sys.path[:] = {path!r}; from runtime.confined.child import main; "
    "main({descriptor}, {module!r}, {memory}, {niceness})"
)


class Overrun(RuntimeError):  # noqa: N818
    """The work took too long, or its process died of it; the process is gone. The message goes on
    after the name of the work: "took more than 2 s"."""


class Busy(RuntimeError):  # noqa: N818
    """Every process was at work for longer than the caller would wait."""


class ConfinedPool:
    """Runs tasks of `module` (its `TASKS`, by name) in at most `size` children.

    Thread-safe. A child starts when it is first needed, or with `start`; it ends with this process
    or with `close`. seconds: wall time of one call. memory_bytes: addresses a child may have.
    """

    def __init__(
        self,
        module: str,
        *,
        size: int = 1,
        seconds: float = 2.0,
        memory_bytes: int = 768 * 1024 * 1024,
        niceness: int = 0,
        patience: float = 10.0,
    ) -> None:
        self.module = module
        self.seconds = seconds
        self._size = size
        self._memory_bytes = memory_bytes
        self._niceness = niceness
        self._patience = patience
        self._free = threading.Condition()
        self._idle: deque[_Child] = deque()
        self._all: set[_Child] = set()
        self._owner = os.getpid()
        self.overruns = 0
        atexit.register(self.close)

    def start(self) -> None:
        """Have a child ready soon; does not wait for it."""
        with self._free:
            self._forget_parents_children()
            if not self._all:
                self._idle.append(self._spawn())

    def call(self, task: str, *arguments: Any) -> Any:
        """What the task returns. JSON goes in and comes out.

        Raises Refused with the task's own words, Overrun where it had to be killed, Busy.
        """
        child = self._take()
        try:
            return child.ask(task, arguments, self.seconds, max(self.seconds, self._patience))
        finally:
            self._give_back(child)

    def close(self) -> None:
        """End the children; a later call starts new ones."""
        with self._free:
            self._forget_parents_children()
            for child in self._all:
                child.kill()
            self._all.clear()
            self._idle.clear()
            self._free.notify_all()

    @property
    def pids(self) -> list[int]:
        """Of the children that live."""
        with self._free:
            return [child.pid for child in self._all]

    def _take(self) -> "_Child":
        with self._free:
            self._forget_parents_children()
            if not self._idle and len(self._all) < self._size:
                return self._spawn()
            if not self._free.wait_for(lambda: self._idle or not self._all, self._patience):
                raise Busy(f"every process was busy for {self._patience:g} s; try again later")
            return self._idle.popleft() if self._idle else self._spawn()

    def _give_back(self, child: "_Child") -> None:
        with self._free:
            if child.dead:
                self.overruns += 1
                self._all.discard(child)
                child = self._spawn()
            if child in self._all:
                self._idle.append(child)
            self._free.notify()

    def _spawn(self) -> "_Child":
        child = _Child(self.module, self._memory_bytes, self._niceness)
        self._all.add(child)
        return child

    def _forget_parents_children(self) -> None:
        """After a fork, the children answer to the process that made them, not to us."""
        if self._owner != os.getpid():
            self._owner = os.getpid()
            self._all.clear()
            self._idle.clear()


class _Child:
    def __init__(self, module: str, memory_bytes: int, niceness: int) -> None:
        self.dead = False
        self._ready = False
        self._link, theirs = socket.socketpair()
        path = [str(_ROOT), *(entry for entry in sys.path if entry)]
        boot = _BOOT.format(
            path=path,
            descriptor=theirs.fileno(),
            module=module,
            memory=memory_bytes,
            niceness=niceness,
        )
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", boot],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env={name: os.environ[name] for name in ("TZ",) if name in os.environ},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ask(self, task: str, arguments: tuple[Any, ...], seconds: float, longest: float) -> Any:
        """seconds: of processor time. longest: of wall time."""
        try:
            if not self._ready:
                receive(self._link, time.monotonic() + _START_SECONDS)
                self._ready = True
            deadline = time.monotonic() + longest
            request = {"task": task, "arguments": arguments, "seconds": seconds}
            end = self._worked() + seconds
            send(self._link, request, deadline)
            self._wait(end, deadline)
            answer = receive(self._link, deadline)
        except TimeoutError:
            self.kill()
            raise Overrun(f"took more than {seconds:g} s") from None
        except (EOFError, OSError, ValueError) as error:
            if isinstance(error, Refused):
                raise
            self.kill()
            raise Overrun("needed too much memory or time, or broke its process") from None
        except BaseException:
            self.kill()
            raise
        if "refused" in answer:
            raise Refused(answer["refused"], answer["kind"])
        return answer["value"]

    def _wait(self, end: float, deadline: float) -> None:
        """Until it answers or is gone; TimeoutError once it has worked until `end`."""
        answer = select.poll()
        answer.register(self._link, select.POLLIN)
        while (left := min(end - self._worked(), deadline - time.monotonic())) > 0:
            # It cannot work for longer than time passes.
            if answer.poll(ceil(1000 * left)):
                return
        raise TimeoutError

    def _worked(self) -> float:
        """Seconds of processor time; of wall time where nobody knows."""
        if sys.platform != "linux":
            return time.monotonic()
        try:
            # clock_getcpuclockid(3), which Python has for threads alone.
            return time.clock_gettime((~self.pid << 3) | 2)
        except OSError:
            return 0.0  # it is gone, which its link tells

    def kill(self) -> None:
        if not self.dead:
            self.dead = True
            self._process.kill()
            self._process.wait()
            self._link.close()
