"""GET /ready: whether to send requests here; /health is about whether to restart the server."""

from starlette.requests import Request

from runtime.server.errors import ApiError
from runtime.server.routing import App
from runtime.server.state import ServerState, state_of


def add_routes(app: App) -> None:
    app.add_api_route("/ready", show_ready, methods=["GET"])


async def show_ready(request: Request) -> dict[str, str]:
    """200 while requests would be answered at once; 503 and why they would not."""
    reason = not_ready(state_of(request))
    if reason is not None:
        raise ApiError(503, reason, headers={"Retry-After": "1"})
    return {"status": "ok"}


def not_ready(state: ServerState) -> str | None:
    """Why the server is not ready, in a sentence; None where it is. A model that a request may
    load is no obstacle, unless it failed to."""
    if state.draining:
        return "the server is shutting down"
    for name, model in state.registry.models.items():
        reason = _model_not_ready(name, state)
        if reason is not None and not model.parked:
            return reason
    return None


def _model_not_ready(name: str, state: ServerState) -> str | None:
    model = state.registry.models[name]
    if model.state == "loading":
        return f"the model '{name}' is being loaded"
    if model.state == "failed":
        return f"the model '{name}' could not be loaded"
    service = model.service
    if service is not None and not service.engine.is_ready:
        return f"the engine of '{name}' is not running"
    return None


def model_is_ready(name: str, state: ServerState) -> bool:
    """Whether that model answers, or each model of that alias. ApiError 404 for an unknown name."""
    alias = state.registry.aliases.get(name)
    names = [name] if alias is None else [target for target, _ in alias.targets]
    services = [state.registry.model(one).service for one in names]
    return not state.draining and all(one is not None and one.engine.is_ready for one in services)
