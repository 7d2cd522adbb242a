"""Which waiting request may run next, and whether the pool has room for it."""

from collections.abc import Sequence

from runtime.engine.options import EngineOptions
from runtime.engine.pages import PagePool
from runtime.engine.prefix_cache import PrefixCache
from runtime.engine.sequence import SequenceState

LOOKED_AT = 32
"""Waiting requests whose prefixes are compared, and
`RANKED_PAGES` pages of each: the work of a step is bounded, however long queue and prompts are."""
RANKED_PAGES = 64
MOST_OVERTAKEN = 8
"""A request that so many have overtaken is next."""


class Admission:
    """Admits in the order of service; or, with queue_order "prefix", first who has the most
    computed already among those of equal priority, while what they share is still kept."""

    def __init__(self, pool: PagePool, cache: PrefixCache | None, options: EngineOptions) -> None:
        self._pool = pool
        self._cache = cache
        self._reserve_answers = options.reserve_answers
        self._by_prefix = options.queue_order == "prefix" and cache is not None
        self._watermark = pool.capacity // 100

    def choose(self, waiting: Sequence[SequenceState]) -> SequenceState:
        """Who is next of those who wait, sorted by the order of service."""
        first = waiting[0]
        if not self._by_prefix or first.times_overtaken >= MOST_OVERTAKEN:
            return first
        assert self._cache is not None
        priority, best, longest = first.request.priority, first, -1
        for sequence in waiting[:LOOKED_AT]:
            if sequence.request.priority != priority:
                break
            length = len(self._cache.match(sequence, RANKED_PAGES))
            if length > longest:
                best, longest = sequence, length
        return best

    def found_pages(self, sequence: SequenceState, num_running: int) -> list[int] | None:
        """Pages of the prefix cache that the sequence can go on from; None if it does not fit now.

        It has to fit with its next token, and to leave each running one a page to grow into:
        admitting into the last page would preempt again at once. Where answers are reserved, it
        has to fit with all of them, and needs nothing more ever.
        """
        found = [] if self._cache is None else self._cache.match(sequence)
        idle = len(found) - self._pool.num_owned(found)
        wanted, headroom = sequence.most_tokens, 0
        if not self._reserve_answers:
            wanted = min(wanted, sequence.num_known_tokens + 1)
            headroom = max(self._watermark, num_running) if num_running else 0
        needed = self._pool.pages_for(wanted) - len(found) + idle
        return found if needed + headroom <= self._pool.num_available else None
