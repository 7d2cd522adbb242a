"""What other threads are told once, at the end of all that a step gave.

To wake a thread amid the events of a step would have the two of them fight for the interpreter's
lock, event by event.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Callback = Callable[[], object]


class _Local(threading.local):
    pending: dict[Callback, None] | None = None


_local = _Local()


@contextmanager
def turn() -> Iterator[None]:
    """What `once_per_turn` is asked for on this thread meanwhile is done at the end."""
    pending: dict[Callback, None] = {}
    _local.pending = pending
    try:
        yield
    finally:
        _local.pending = None
        for callback in pending:
            callback()


def once_per_turn(callback: Callback) -> None:
    """Call it at the end of this thread's turn, once however often it is asked for; at once where
    there is no turn."""
    if _local.pending is None:
        callback()
    else:
        _local.pending[callback] = None
