"""POST /v1/admin/models/{name}/load and .../unload, for whoever runs the server."""

import asyncio
from functools import partial
from ipaddress import ip_address
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from quant.format.errors import ColdpressError
from runtime.server.bodies import validated
from runtime.server.errors import ApiError
from runtime.server.limits import parse_object, read_body
from runtime.server.models import model_card
from runtime.server.registry_errors import load_failed
from runtime.server.routing import App
from runtime.server.state import ServerState, state_of

_MAX_DRAIN_SECONDS = 3600.0


class UnloadBody(BaseModel):
    """drain_seconds: how long running requests may take. force: end those that take longer."""

    model_config = ConfigDict(strict=True, extra="forbid")

    drain_seconds: Annotated[float, Field(ge=0, le=_MAX_DRAIN_SECONDS)] = 30.0
    force: bool = False


def add_routes(app: App) -> None:
    app.add_api_route("/v1/admin/models/{model:path}/load", load_model, methods=["POST"])
    app.add_api_route("/v1/admin/models/{model:path}/unload", unload_model, methods=["POST"])


async def load_model(request: Request, model: str) -> dict[str, Any]:
    """Load a model and answer with its card once it is; 409 while it is unloaded, 503 where it
    cannot be loaded."""
    state = _admitted(request)
    served = state.registry.model(model)
    try:
        await asyncio.to_thread(state.registry.load, model)
    except ApiError:
        raise
    except Exception as failure:
        if not isinstance(failure, ColdpressError) and served.failure is not failure:
            raise
        raise load_failed(served, 0) from None
    return model_card(state, served)


async def unload_model(request: Request, model: str) -> dict[str, Any]:
    """Unload a model once its requests have ended and answer with its card; 409 if they have not
    in time, or while it is loaded."""
    state = _admitted(request)
    served = state.registry.model(model)
    raw = await read_body(request, state.limits)
    body = validated(UnloadBody, parse_object(raw) if raw.strip() else {})
    unload = partial(state.registry.unload, model, body.drain_seconds, force=body.force)
    await asyncio.to_thread(unload)
    return model_card(state, served)


def _admitted(request: Request) -> ServerState:
    """ApiError 403 for other sites' pages in a browser of this machine, and for other machines
    where no API key guards the server."""
    state = state_of(request)
    if request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
        raise ApiError(403, "models are not loaded or unloaded for pages of other sites")
    if not state.has_key and not _is_local(request):
        raise ApiError(
            403,
            "models are loaded and unloaded from this machine only, since the server has no API "
            "key; give it one",
        )
    return state


def _is_local(request: Request) -> bool:
    try:
        return request.client is not None and ip_address(request.client.host).is_loopback
    except ValueError:
        return False
