"""The HTTP application: routes and error handlers put together."""

from collections.abc import Collection, Sequence
from functools import partial

from starlette.exceptions import HTTPException

from runtime.engine.request import RequestError
from runtime.server import (
    admin,
    chat,
    completions,
    embeddings,
    errors,
    health,
    kserve,
    llamacpp,
    metrics,
    models,
    ollama,
    openapi,
    page,
    ready,
    responses,
    tokens,
)
from runtime.server.access import Access, add_access
from runtime.server.body_budget import BodyBudget, BoundBodies
from runtime.server.leases import ReleaseLeases
from runtime.server.limits import Limits
from runtime.server.metrics import Metrics
from runtime.server.registry import Registry
from runtime.server.routing import App
from runtime.server.shadows import ShadowFamilies, Shadows
from runtime.server.state import ServerState
from runtime.service import GenerationService

_ROOMS = (
    chat,
    completions,
    embeddings,
    responses,
    models,
    admin,
    health,
    metrics,
    ready,
    tokens,
    llamacpp,
    kserve,
    ollama,
    openapi,
    page,
)


def create_app(
    served: Registry | Sequence[GenerationService],
    limits: Limits | None = None,
    access: Access | None = None,
    metrics_compat: Collection[str] = (),
) -> App:
    """An OpenAI-compatible app over one or several models; the first answers unnamed requests.

    access: who may ask, and what is told of it; None lets everyone in and tells nothing.
    metrics_compat: see Metrics.
    """
    access = access or Access()
    registry = served if isinstance(served, Registry) else Registry.of(served)
    app = App()
    limits = limits or Limits()
    observed = Metrics(registry, metrics_compat)
    budget = BodyBudget(limits, partial(_expected_wait, registry))
    observed.registry.register(budget)
    app.state.server = ServerState(registry, limits, observed, has_key=access.keys is not None)
    copies = Shadows(registry)
    observed.registry.register(ShadowFamilies(copies))
    for room in _ROOMS:
        room.add_routes(app)
    app.add_exception_handler(errors.ApiError, errors.on_api_error)
    app.add_exception_handler(RequestError, errors.on_request_error)
    app.add_exception_handler(HTTPException, errors.on_http_error)
    app.add_middleware(BoundBodies, budget=budget)
    app.add_middleware(ReleaseLeases, registry=registry, shadows=copies)
    add_access(app, access, observed)
    return app


def _expected_wait(registry: Registry) -> float:
    """Seconds until a request that comes now is likely to start, whatever model it is for."""
    engines = [service.engine for service in registry.ready_services().values()]
    return max((engine.stats().expected_wait_seconds for engine in engines), default=0.0)
