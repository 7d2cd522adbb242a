"""GET /api/tags, /api/ps and /api/version, POST /api/show: what there is."""

from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request

from runtime.engine.request import RequestError
from runtime.server import health
from runtime.server.bodies import read_fields, validated
from runtime.server.ollama.schemas import ShowBody
from runtime.server.registry_models import ServedModel
from runtime.server.state import ServerState, state_of
from runtime.service import GenerationService
from runtime.text.reasoning import has_reasoning

_FOREVER = "9999-12-31T23:59:59Z"
_LATEST = ":latest"


def known_name(state: ServerState, name: str) -> str:
    """The name without the tag that Ollama's clients add, unless a model is called just that."""
    if name not in state.registry.models and name.endswith(_LATEST):
        return name.removesuffix(_LATEST)
    return name


async def list_models(request: Request) -> dict[str, Any]:
    """Every model, loaded or not, then every alias, as its first model."""
    state = state_of(request)
    models = state.registry.models
    aliases = [
        {**_entry(state, models[alias.targets[0][0]]), "name": alias.name, "model": alias.name}
        for alias in state.registry.aliases.values()
    ]
    return {"models": [*(_entry(state, model) for model in models.values()), *aliases]}


async def list_loaded(request: Request) -> dict[str, Any]:
    """The models that answer at this moment."""
    state = state_of(request)
    loaded = [
        {
            **_entry(state, model),
            "expires_at": _FOREVER,
            "context_length": model.service.max_positions,
        }
        for model in state.registry.models.values()
        if model.service is not None
    ]
    return {"models": loaded}


async def show_model(request: Request) -> dict[str, Any]:
    """Template, recommended sampling and sizes of one model, which is loaded for that."""
    state = state_of(request)
    body = validated(ShowBody, await read_fields(request, state.limits))
    name = body.model or body.name
    if not name:
        raise RequestError("model is missing", "model")
    service = await state.lease(request, known_name(state, name))
    model = state.registry.model(service.model_name)
    return {
        "modelfile": "",
        "parameters": _parameters(service),
        "template": service.template.source if service.template else "",
        "details": _details(model),
        "model_info": {
            "general.architecture": _family(model),
            "general.basename": service.model_name,
            f"{_family(model)}.context_length": service.max_positions,
            f"{_family(model)}.vocab_size": service.tokenizer.vocab_size,
        },
        "capabilities": _capabilities(service),
        "modified_at": _started(state),
    }


async def show_version() -> dict[str, str]:
    """The version of coldpress, not of an Ollama that it would pass for."""
    return await health.show_version()


def _entry(state: ServerState, model: ServedModel) -> dict[str, Any]:
    """What a listing says; what is not known of a model is left out."""
    entry = {
        "name": model.name,
        "model": model.name,
        "modified_at": _started(state),
        "details": _details(model),
    }
    card = model.settings.card
    known = {"size": card.get("weight_bytes"), "digest": card.get("digest")}
    return entry | {key: value for key, value in known.items() if value is not None}


def _details(model: ServedModel) -> dict[str, Any]:
    """Known parts of a model's card, in Ollama's words."""
    card = model.settings.card
    return {
        "parent_model": "",
        "format": str(card.get("format", "")),
        "family": _family(model),
        "families": [_family(model)],
        "parameter_size": str(card.get("parameter_size", "")),
        "quantization_level": str(card.get("quantization", "")),
    }


def _family(model: ServedModel) -> str:
    return str(model.settings.card.get("family", "unknown"))


def _capabilities(service: GenerationService) -> list[str]:
    thinks = service.template is not None and has_reasoning(service.template.source)
    tools = ["tools"] if service.template is not None else []
    return ["completion", "embedding", *tools, *(["thinking"] if thinks else [])]


def _parameters(service: GenerationService) -> str:
    """One line per recommended value, as in a Modelfile."""
    renamed = {"repetition_penalty": "repeat_penalty"}
    given = service.sampling_defaults.items()
    return "\n".join(f"{renamed.get(name, name)} {value}" for name, value in given)


def _started(state: ServerState) -> str:
    started = datetime.fromtimestamp(state.created, UTC)
    return started.isoformat().replace("+00:00", "Z")
