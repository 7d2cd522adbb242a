"""GET /v1/models and /v1/models/{id}: what there is, in which state, and how good it was measured
to be."""

from typing import Any

from starlette.requests import Request

from runtime.server.registry_models import ServedModel
from runtime.server.registry_names import Alias
from runtime.server.routing import App
from runtime.server.state import ServerState, state_of


def add_routes(app: App) -> None:
    app.add_api_route("/v1/models", list_models, methods=["GET"])
    app.add_api_route("/v1/models/{model:path}", show_model, methods=["GET"])


async def list_models(request: Request) -> dict[str, Any]:
    """Every model of this server, loaded or not, then every alias."""
    state = state_of(request)
    models = [model_card(state, model) for model in state.registry.models.values()]
    aliases = [_alias_card(state, alias) for alias in state.registry.aliases.values()]
    return {"object": "list", "data": [*models, *aliases]}


async def show_model(request: Request, model: str) -> dict[str, Any]:
    """One model or alias; 404 for an unknown one."""
    state = state_of(request)
    alias = state.registry.aliases.get(model)
    if alias is not None:
        return _alias_card(state, alias)
    return model_card(state, state.registry.model(model))


def model_card(state: ServerState, model: ServedModel) -> dict[str, Any]:
    """OpenAI's fields and vLLM's; then the state, and what the artifact says of itself."""
    loaded = model.service
    aliases = state.registry.aliases.values()
    card = {
        **_card(state, model.name, model.name),
        "state": model.state,
        "in_use": model.in_use,
        "aliases": [
            alias.name for alias in aliases if any(name == model.name for name, _ in alias.targets)
        ],
        **model.settings.card,
    }
    if loaded is not None:
        card["max_model_len"] = loaded.max_positions
    if model.failure is not None:
        card["error"] = str(model.failure)
    return card


def _alias_card(state: ServerState, alias: Alias) -> dict[str, Any]:
    """max_model_len is what every model of the alias holds."""
    first, *_ = names = [name for name, _ in alias.targets]
    lengths = [model_card(state, state.registry.models[name])["max_model_len"] for name in names]
    total = sum(weight for _, weight in alias.targets)
    return {
        **_card(state, alias.name, first),
        "max_model_len": min((length for length in lengths if length), default=None),
        "targets": [{"model": name, "share": weight / total} for name, weight in alias.targets],
    }


def _card(state: ServerState, name: str, root: str) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": state.created,
        "owned_by": "coldpress",
        "root": root,
        "parent": None,
        "max_model_len": None,
        "permission": [],
    }
