"""How clients' grammars fared in the confined process, and how long they took there."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from runtime.engine.constraint import GRAMMAR_SECONDS


class CheckCounts:
    """`by_outcome`: "ok", the name of one of `failures` in small letters, or "error".
    `by_seconds`: how many took at most each of GRAMMAR_SECONDS, and more. `seconds`: all together.
    Thread-safe."""

    def __init__(self, failures: Sequence[type[Exception]]) -> None:
        self._failures = tuple(failures)
        self._lock = threading.Lock()
        self.by_outcome = dict.fromkeys(("ok", *map(_name, failures), "error"), 0)
        self.by_seconds = [0] * (len(GRAMMAR_SECONDS) + 1)
        self.seconds = 0.0

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Counts what happens within, and how long that takes."""
        start, outcome = time.monotonic(), "error"
        try:
            yield
            outcome = "ok"
        except self._failures as failure:
            outcome = _name(type(failure))
            raise
        finally:
            self._note(outcome, time.monotonic() - start)

    def _note(self, outcome: str, seconds: float) -> None:
        with self._lock:
            self.by_outcome[outcome] += 1
            self.by_seconds[sum(seconds > bound for bound in GRAMMAR_SECONDS)] += 1
            self.seconds += seconds


def _name(failure: type[Exception]) -> str:
    return failure.__name__.lower()
