"""How much of all bodies together a server holds: many slow large ones must not fill its memory."""

import time
from collections.abc import Callable, Iterator
from math import ceil

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.server.errors import ApiError
from runtime.server.limits import Limits

SMALL_BYTES = 64 * 1024
"""So much of each body always finds room that larger ones do not get."""
_LONGEST_RETRY_SECONDS = 60


class BodyBudget(Collector):
    """Counts the bytes of each body from their arrival until its request is answered. Larger ones
    may take three quarters of `limits.max_bodies_bytes` beyond their first SMALL_BYTES.

    expected_wait: seconds until the engines will have room again, as they see it.
    """

    def __init__(
        self,
        limits: Limits,
        expected_wait: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._most = limits.max_bodies_bytes
        self._body_seconds = limits.body_seconds
        self._expected_wait = expected_wait
        self._clock = clock
        self._arriving: dict[Body, float] = {}
        self.held = 0
        self.held_by_large = 0

    def add(self, body: "Body", size: int, *, last: bool) -> None:
        """So much more of it is here. ApiError 429 where it does not fit; it counts until it is
        released all the same."""
        self._arriving.setdefault(body, self._clock())
        large = max(0, body.size + size - SMALL_BYTES) - max(0, body.size - SMALL_BYTES)
        body.size += size
        self.held += size
        self.held_by_large += large
        full = self.held > self._most or (large and self.held_by_large > self._most * 3 // 4)
        if full:
            self._arriving.pop(body)
            raise ApiError(
                429,
                f"the server holds {self._most} bytes of requests already, as many as it may",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(self._retry_seconds()), "Connection": "close"},
            )
        if last:
            self._arriving.pop(body)

    def release(self, body: "Body") -> None:
        """Its request is answered."""
        self._arriving.pop(body, None)
        self.held -= body.size
        self.held_by_large -= max(0, body.size - SMALL_BYTES)
        body.size = 0

    def collect(self) -> Iterator[Metric]:
        yield GaugeMetricFamily(
            "coldpress_http_body_bytes", "Bytes of bodies that are not answered yet.", self.held
        )
        yield GaugeMetricFamily(
            "coldpress_http_max_body_bytes", "As many as there may be.", self._most
        )

    def _retry_seconds(self) -> int:
        """Until the oldest body that still arrives must have; where none does, until an answer
        is likely to end."""
        oldest = next(iter(self._arriving.values()), None)
        if oldest is None:
            seconds = self._expected_wait()
        else:
            seconds = oldest + self._body_seconds - self._clock()
        return min(max(ceil(seconds), 1), _LONGEST_RETRY_SECONDS)


class Body:
    """One request's, as far as it has come."""

    size = 0


class BoundBodies:
    """Middleware: what is read of bodies counts in the budget."""

    def __init__(self, app: ASGIApp, budget: BodyBudget) -> None:
        self._app = app
        self._budget = budget

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = Body()

        async def counted() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                size, last = len(message.get("body", b"")), not message.get("more_body", False)
                self._budget.add(body, size, last=last)
            return message

        try:
            await self._app(scope, counted, send)
        finally:
            self._budget.release(body)
