"""Whoever tries many wrong keys has to wait, so that guessing one does not pay."""

import time
from collections import OrderedDict
from collections.abc import Callable

FREE_GUESSES = 10
"""Wrong keys of one address that cost it nothing; they are forgotten one by one."""
FORGET_SECONDS = 6.0
MAX_ADDRESSES = 4096
"""More are forgotten from the oldest on: an attacker of many addresses must not fill memory."""


class Guesses:
    """Wrong keys by address; on the event loop's thread alone."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wrong: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """How many, and when that was counted."""

    def seconds_to_wait(self, address: str) -> float:
        """0 where the address may try a key."""
        return max(0.0, (self._count(address) - FREE_GUESSES + 1) * FORGET_SECONDS)

    def wrong(self, address: str) -> None:
        """One more wrong key."""
        self._wrong[address] = (self._count(address) + 1, self._clock())
        self._wrong.move_to_end(address)
        while len(self._wrong) > MAX_ADDRESSES:
            self._wrong.popitem(last=False)

    def _count(self, address: str) -> float:
        count, counted = self._wrong.get(address, (0.0, 0.0))
        return max(0.0, count - (self._clock() - counted) / FORGET_SECONDS)
