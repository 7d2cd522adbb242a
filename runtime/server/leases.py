"""Which models a request uses, from the moment it names one until its answer is out."""

from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from runtime.server.bodies import FIELDS
from runtime.server.leaving import unless_left
from runtime.server.record import current_record
from runtime.server.registry import Registry
from runtime.server.registry_models import ServedModel
from runtime.server.shadows import Shadows
from runtime.service import GenerationService

_LEASES = "coldpress.leases"
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
        models = await self._leasing(scope, receive, send)
        if not self._shadows or not models:
            return
        record = current_record()
        assert record is not None, "the record begins outside"
        for shadow in self._shadows.of(models[0].name) if record.status == 200 else ():
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
        service = await unless_left(request, registry.acquire(model))
    request.scope[_LEASES].append(model)
    return service
