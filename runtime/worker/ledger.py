"""Counters over several lives of a worker."""

from dataclasses import fields, replace
from typing import Any

from runtime.engine.request import FinishReason
from runtime.engine.stats import Counters, EngineStats


class Ledger:
    """None of its counters ever falls, and every accepted request is live or has ended for one
    reason, whatever became of the workers that had it. Not thread-safe.

    max_waiting: length of the queue, which is the front's; workers are told of a longer one.
    """

    def __init__(self, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._past = Counters()
        self._now = EngineStats()
        self._accepted = 0
        self._restarts = 0
        self._finished: dict[FinishReason, int] = dict(Counters().finished)

    @property
    def num_running(self) -> int:
        return self._now.num_running

    def accept(self) -> None:
        self._accepted += 1

    def finish(self, reason: FinishReason) -> None:
        self._finished[reason] += 1

    def turn(self, stats: EngineStats) -> None:
        """The latest counters of the worker that runs now."""
        self._now = stats

    def lost(self) -> None:
        """That worker is no more; the next one counts from 0."""
        self._past = _sum(self._past, self._now)
        self._now = EngineStats(pages_total=self._now.pages_total)

    def restart(self) -> None:
        """Another worker was started."""
        self._restarts += 1

    def stats(self, num_live: int) -> EngineStats:
        """Of this moment; requests that the worker has not begun count as waiting."""
        total = vars(_sum(self._past, self._now))
        total |= {"requests": self._accepted, "finished": dict(self._finished)}
        total |= {"max_waiting": self._max_waiting, "worker_restarts": self._restarts}
        waiting = max(0, num_live - self._now.num_running)
        return replace(self._now, **total, num_waiting=waiting)


def _sum(left: Counters, right: Counters) -> Counters:
    """Field by field, numbers and tables of numbers alike."""
    total: dict[str, Any] = {}
    for field in fields(Counters):
        one, other = getattr(left, field.name), getattr(right, field.name)
        if isinstance(one, dict):
            total[field.name] = {key: one.get(key, 0) + other.get(key, 0) for key in one | other}
        else:
            total[field.name] = one + other
    return Counters(**total)
