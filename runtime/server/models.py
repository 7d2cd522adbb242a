"""GET /v1/models and /v1/models/{id}."""

from typing import Any

from fastapi import FastAPI, Request

from runtime.server.state import ServerState, state_of
from runtime.service import GenerationService


def add_routes(app: FastAPI) -> None:
    app.add_api_route("/v1/models", list_models, methods=["GET"])
    app.add_api_route("/v1/models/{model:path}", show_model, methods=["GET"])


async def list_models(request: Request) -> dict[str, Any]:
    """Every model of this server."""
    state = state_of(request)
    cards = [_card(state, service) for service in state.services.values()]
    return {"object": "list", "data": cards}


async def show_model(request: Request, model: str) -> dict[str, Any]:
    """One model; 404 for an unknown one."""
    state = state_of(request)
    return _card(state, state.service(model))


def _card(state: ServerState, service: GenerationService) -> dict[str, Any]:
    return {
        "id": service.model_name,
        "object": "model",
        "created": state.created,
        "owned_by": "coldpress",
        "root": service.model_name,
        "parent": None,
        "max_model_len": service.max_positions,
        "permission": [],
    }
