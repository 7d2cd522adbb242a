"""Clients that leave before their answer is there."""

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.types import Receive

from runtime.server.errors import client_left

Result = TypeVar("Result")


async def unless_left(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """What `work` gives; it is cancelled, and ApiError raised, if the client leaves meanwhile. The
    request's body must have been read."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(until_left(request.receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise client_left()
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


async def until_left(receive: Receive) -> None:
    """Returns once the client is gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
