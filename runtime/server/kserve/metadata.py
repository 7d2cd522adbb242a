"""Health and metadata, as the protocol's REST part has them."""

from typing import Any

from starlette.requests import Request

from runtime.server.errors import ApiError
from runtime.server.health import show_health, show_version
from runtime.server.ready import model_is_ready, not_ready
from runtime.server.state import state_of

VERSION = "1"


async def show_server() -> dict[str, Any]:
    """Name, version and extensions of the server."""
    version = (await show_version())["version"]
    return {"name": "coldpress", "version": version, "extensions": ["generate"]}


async def show_live(request: Request) -> dict[str, bool]:
    """200 where /health has it."""
    await show_health(request)
    return {"live": True}


async def show_ready(request: Request) -> dict[str, bool]:
    """200 where /ready has it. The protocol's page calls the answer `live`, its clients `ready`."""
    reason = not_ready(state_of(request))
    if reason is not None:
        raise ApiError(503, reason, headers={"Retry-After": "1"})
    return {"live": True, "ready": True}


async def show_model_ready(request: Request, model: str, version: str = VERSION) -> dict[str, Any]:
    """200 if the model answers, 503 if not, 404 for an unknown one."""
    check_version(model, version)
    if not model_is_ready(model, state_of(request)):
        raise ApiError(503, f"the model '{model[:100]}' is not ready", headers={"Retry-After": "1"})
    return {"name": model, "ready": True}


async def show_model(request: Request, model: str, version: str = VERSION) -> dict[str, Any]:
    """What the generate extension takes and gives."""
    check_version(model, version)
    registry = state_of(request).registry
    name = model if model in registry.aliases else registry.model(model).name
    return {
        "name": name,
        "versions": [VERSION],
        "platform": "coldpress",
        "inputs": [{"name": "text_input", "datatype": "BYTES", "shape": [1]}],
        "outputs": [{"name": "text_output", "datatype": "BYTES", "shape": [1]}],
    }


def check_version(model: str, version: str) -> None:
    if version != VERSION:
        raise ApiError(
            404,
            f"the model '{model[:100]}' has no version '{version[:20]}'; it has version {VERSION}",
            code="model_not_found",
        )
