"""Requests that were in the step when a worker died, told apart by what they ask."""

from collections import OrderedDict
from dataclasses import replace
from hashlib import blake2b

import msgspec

from runtime.engine.request import Request, RequestError

STRIKES = 2
"""Deaths that a request may see before it is held to be their cause."""
_MAX_ENTRIES = 4096

Digest = bytes


class Quarantine:
    """Counts, by content, in how many deaths of a worker a request took part without ever having
    been answered. Bounded: the oldest entry is forgotten first. Not thread-safe."""

    def __init__(self, strikes: int = STRIKES) -> None:
        self._limit = strikes
        self._strikes: OrderedDict[Digest, int] = OrderedDict()

    def check(self, request: Request) -> None:
        """RequestError with code "quarantined" for a request that has killed workers."""
        if self._strikes and self._strikes.get(digest_of(request), 0) >= self._limit:
            raise RequestError(
                f"this request has ended the model's process {self._limit} times and is not run "
                "again; the server's log has the details",
                code="quarantined",
            )

    def blame(self, request: Request) -> bool:
        """It was in the step that a worker died in; whether it is quarantined from now on."""
        digest = digest_of(request)
        strikes = self._strikes.pop(digest, 0) + 1
        self._strikes[digest] = strikes
        if len(self._strikes) > _MAX_ENTRIES:
            self._strikes.popitem(last=False)
        return strikes >= self._limit

    def clear(self, request: Request) -> None:
        """It was answered to its end: whatever killed workers, this was not it."""
        if self._strikes:
            self._strikes.pop(digest_of(request), None)


def digest_of(request: Request) -> Digest:
    """Of what is asked, whoever asks: the id and the seed of a repetition differ."""
    plain = replace(request, request_id="", sampling=replace(request.sampling, seed=None))
    return blake2b(msgspec.msgpack.encode(plain, order="deterministic"), digest_size=16).digest()
