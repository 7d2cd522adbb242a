"""Which models a request uses, from the moment it names one until its answer is out."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.server.bodies import FIELDS
from runtime.server.errors import ApiError
from runtime.server.registry import Registry
from runtime.server.registry_models import ServedModel
from runtime.server.shadows import Shadows
from runtime.service import GenerationService

_LEASES = "coldpress.leases"
_CLIENT_CLOSED = 499
_STICKY_FIELDS = ("prompt_cache_key", "safety_identifier", "user")
"""OpenAI's; the first says the most about which prompts begin alike."""


class ReleaseLeases:
    """Ends a request's leases after the last byte of its answer, however that comes about, and
    then lets its shadows run, which other middlewares do not see."""

    def __init__(self, app: ASGIApp, registry: Registry, shadows: Shadows) -> None:
        self._app = app
        self._registry = registry
        self._shadows = shadows

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._shadows:
            await self._leasing(scope, receive, send)
            return
        status = 0

        async def watching_send(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)

        models = await self._leasing(scope, receive, watching_send)
        for shadow in self._shadows.of(models[0].name) if models and status == 200 else ():
            self._shadows.start(shadow, scope, scope[FIELDS], self._leasing)

    async def _leasing(self, scope: Scope, receive: Receive, send: Send) -> Sequence[ServedModel]:
        leases: list[ServedModel] = []
        scope[_LEASES] = leases
        try:
            await self._app(scope, receive, send)
        finally:
            for model in leases:
                self._registry.release(model)
        return leases


def sticky_key(fields: Mapping[str, Any]) -> str | None:
    """What keeps the requests of one user of an application on the same model of an alias."""
    named = (fields.get(name) for name in _STICKY_FIELDS)
    return next((value for value in named if isinstance(value, str) and value), None)


async def lease(registry: Registry, request: Request, model: ServedModel) -> GenerationService:
    """The model's service, counted as used by `request` until its answer is out.

    The request's body must have been read, since what comes after it is taken as the client's
    leaving. Raises what `Registry.acquire` does, and ApiError where the client leaves meanwhile.
    """
    service = registry.acquire_now(model)
    if service is None:
        service = await _awaited(registry, request, model)
    request.scope[_LEASES].append(model)
    return service


async def _awaited(registry: Registry, request: Request, model: ServedModel) -> GenerationService:
    acquiring = asyncio.ensure_future(registry.acquire(model))
    leaving = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({acquiring, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not acquiring.done():
            raise ApiError(_CLIENT_CLOSED, "the client closed the connection")
        return acquiring.result()
    finally:
        acquiring.cancel()
        leaving.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
