"""From text to tokens off the event loop, such that large requests do not crowd out small ones."""

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from runtime.server.bodies import body_bytes_of
from runtime.server.errors import ApiError

Result = TypeVar("Result")

LARGE_BYTES = 256 * 1024
MAX_WAITING = 32
"""Large requests that wait for one that is being encoded; further ones are refused."""


class LargeRequests:
    """One of them is encoded at a time: megabytes of text take seconds, and seventy times their
    size while that goes on, and the threads are there for everyone."""

    def __init__(self) -> None:
        self._turn = asyncio.Semaphore(1)
        self.num_waiting = 0

    async def run(self, work: Callable[[], Result]) -> Result:
        """ApiError 429 where too many wait already."""
        if self.num_waiting >= MAX_WAITING:
            raise ApiError(
                429,
                f"{MAX_WAITING} requests of more than {LARGE_BYTES} bytes wait already",
                code="rate_limit_exceeded",
                headers={"Retry-After": "10"},
            )
        self.num_waiting += 1
        try:
            await self._turn.acquire()
        finally:
            self.num_waiting -= 1
        try:
            return await run_in_threadpool(work)
        finally:
            self._turn.release()


async def encoded(request: Request, work: Callable[..., Result], *args: Any, **kw: Any) -> Result:
    """What `work(*args, **kw)` makes of the text of `request`, whose body has been read."""

    def run() -> Result:
        return work(*args, **kw)

    if body_bytes_of(request) <= LARGE_BYTES:
        return await run_in_threadpool(run)
    large: LargeRequests = request.app.state.server.large_requests
    return await large.run(run)
