"""GET /health and /version."""

from importlib.metadata import PackageNotFoundError, version

from starlette.requests import Request
from starlette.responses import Response

from runtime.server.errors import ApiError
from runtime.server.routing import App
from runtime.server.state import state_of


def add_routes(app: App) -> None:
    app.add_api_route("/health", show_health, methods=["GET"])
    app.add_api_route("/version", show_version, methods=["GET"])


async def show_health(request: Request) -> Response:
    """200 and nothing else; 503 while shutting down, or once an engine is dead, or has had work
    for long and ended no step. A worker that was lost and is back before that is no reason to end
    the server; /ready tells of it."""
    state = state_of(request)
    if state.draining:
        raise ApiError(503, "the server is shutting down")
    for service in state.services.values():
        if not service.engine.is_alive:
            raise ApiError(503, f"the engine of '{service.model_name}' is not running")
        waited = service.engine.seconds_without_progress()
        if waited > state.limits.stall_seconds:
            raise ApiError(503, f"'{service.model_name}' made no progress for {waited:.0f} s")
    return Response(status_code=200)


async def show_version() -> dict[str, str]:
    """The version of coldpress."""
    try:
        return {"version": version("coldpress")}
    except PackageNotFoundError:
        return {"version": "unknown"}
