"""A worker's process: started without a copy of this one, watched, and put to an end."""

import socket
import subprocess
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from runtime.worker.flight import FlightRecord

if TYPE_CHECKING:
    from runtime.worker.link import Link
    from runtime.worker.spec import ModelSpec

COMMAND = (sys.executable, "-P", "-m", "runtime.worker")
"""Started anew and not forked: a copy of a process with threads may hang. -P: what lies in the
current directory is not imported."""

_LAST_SECONDS = 5.0
_STDERR = 2


class WorkerProcess:
    """One process, from its start to its end. What every model needs it imports at once; which one
    to load it learns from `load`.

    max_running: requests that a step may be about.
    """

    def __init__(self, max_running: int, command: Sequence[str] = COMMAND) -> None:
        ours, theirs = socket.socketpair()
        self._record = FlightRecord.create(max_running)
        fds = (theirs.fileno(), self._record.fd)
        with theirs:
            self._process = subprocess.Popen(
                [*command, *map(str, fds)],
                stdin=subprocess.DEVNULL,
                # What a library prints must not end up in a result on stdout.
                stdout=_STDERR,
                pass_fds=fds,
            )
        self._end = ours
        self._link: Link | None = None

    @property
    def is_used(self) -> bool:
        """Whether it was told what to load."""
        return self._link is not None

    @property
    def link(self) -> "Link":
        """After `load`."""
        assert self._link is not None, "the worker has not been told what to load"
        return self._link

    def load(self, spec: "ModelSpec") -> None:
        """Begin to load; once in its life. Returns at once."""
        # Importing these takes longer than starting the process, which therefore comes before.
        from runtime.worker.link import Link
        from runtime.worker.messages import Load

        self._link = Link(self._end)
        self._link.send(Load(spec))

    @property
    def pid(self) -> int:
        return self._process.pid

    def kill(self) -> None:
        """End it now, whatever it is at, stopped or not."""
        self._process.kill()

    def reap(self) -> int:
        """The exit code of a process whose link is closed or that was killed; negative for a
        signal. Kills it if it does not end by itself."""
        self.link.hang_up()
        try:
            return self._process.wait(_LAST_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def in_flight(self) -> tuple[int, ...]:
        """Numbers of the requests whose step began and did not end."""
        return self._record.read()

    def close(self) -> None:
        """Give the descriptors back, after `reap`."""
        self.link.close()
        self._record.close()

    def discard(self) -> None:
        """End a process that is not needed after all."""
        self.kill()
        self._process.wait()
        self._end.close()
        self._record.close()
