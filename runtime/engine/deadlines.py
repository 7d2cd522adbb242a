"""Requests that have waited or run for too long."""

from heapq import heapify, heappop, heappush
from math import inf

from runtime.engine.options import EngineOptions
from runtime.engine.sequence import SequenceState

_SPARE = 64
"""Entries of requests that have ended are dropped when they are more than twice those of live
requests can be, and that many."""


class Deadlines:
    """The next time at which a request ends unless it has started, or has ended itself."""

    def __init__(self, options: EngineOptions) -> None:
        self._options = options
        self._heap: list[tuple[float, int, bool, SequenceState]] = []
        self._live: set[SequenceState] = set()

    def add(self, sequence: SequenceState, now: float) -> None:
        """Its time runs from now on, until it ends."""
        request, options = sequence.request, self._options
        self._live.add(sequence)
        for seconds, default, queued in (
            (request.queue_seconds, options.queue_seconds, True),
            (request.deadline_seconds, options.deadline_seconds, False),
        ):
            limit = min(one for one in (seconds, default, inf) if one is not None)
            if limit < inf:
                heappush(self._heap, (now + limit, sequence.arrival, queued, sequence))

    def end(self, sequence: SequenceState) -> None:
        """Its time is of no interest any more."""
        self._live.discard(sequence)
        # Each live request has two entries at most, so what is above that belongs to ended ones.
        if len(self._heap) > 4 * len(self._live) + _SPARE:
            self._heap = [entry for entry in self._heap if entry[3] in self._live]
            heapify(self._heap)

    def clear(self) -> None:
        """Every request has ended."""
        self._heap.clear()
        self._live.clear()

    def expired(self, now: float) -> list[tuple[SequenceState, str]]:
        """The live requests whose time is over, with a sentence that says which; each once."""
        ended: dict[SequenceState, str] = {}
        while self._heap and self._heap[0][0] <= now:
            _, _, queued, sequence = heappop(self._heap)
            if sequence in self._live and not (queued and sequence.started):
                where = "in the queue" if queued else "in all"
                ended.setdefault(sequence, f"The request has taken longer than allowed {where}.")
        return list(ended.items())
