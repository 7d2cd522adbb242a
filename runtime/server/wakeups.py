"""News from other threads for an event loop: told once, however much of it comes at a time."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from weakref import WeakKeyDictionary, ref

from runtime.engine.turns import once_per_turn

_log = logging.getLogger(__name__)

Callback = Callable[[], object]


class Wakeups:
    """Callbacks of one loop. A step's tokens come in a row, one for each stream; to wake the loop
    for each would cost a system call apiece, and the interpreter's lock amid the row."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = ref(loop)
        self._pending: deque[Callback] = deque()
        self._is_woken = False

    def call_soon(self, callback: Callback) -> None:
        """Run `callback` on the loop, soon; from any thread. Nothing happens on a closed loop,
        which has nobody left to tell."""
        self._pending.append(callback)
        if not self._is_woken:
            self._is_woken = True
            once_per_turn(self._wake)

    def _wake(self) -> None:
        loop = self._loop()
        with contextlib.suppress(RuntimeError):
            if loop is not None:
                loop.call_soon_threadsafe(self._run)

    def _run(self) -> None:
        # First: what is appended from here on may be missed below, so it must wake the loop anew.
        self._is_woken = False
        while self._pending:
            try:
                self._pending.popleft()()
            except Exception:
                _log.exception("what was to be told an event loop failed")


_of_loops: "WeakKeyDictionary[asyncio.AbstractEventLoop, Wakeups]" = WeakKeyDictionary()


def wakeups() -> Wakeups:
    """Those of the loop that runs the caller."""
    loop = asyncio.get_running_loop()
    found = _of_loops.get(loop)
    if found is None:
        found = _of_loops[loop] = Wakeups(loop)
    return found
