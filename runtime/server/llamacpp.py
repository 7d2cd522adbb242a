"""What clients of llama.cpp's server look up: GET /props, /slots and /v1/health."""

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from runtime.engine.request import SamplingParams
from runtime.server.errors import ApiError
from runtime.server.health import show_health, show_version
from runtime.server.routing import App
from runtime.server.state import state_of
from runtime.service import GenerationService


def add_routes(app: App) -> None:
    app.add_api_route("/props", show_props, methods=["GET"])
    app.add_api_route("/slots", show_slots, methods=["GET"])
    app.add_api_route("/v1/health", show_health_in_words, methods=["GET"])


async def show_health_in_words(request: Request) -> dict[str, str]:
    """/health with the body that llama.cpp's clients read."""
    answer: Response = await show_health(request)
    assert answer.status_code == 200
    return {"status": "ok"}


async def show_props(request: Request) -> dict[str, Any]:
    """Sizes, defaults and template of the model in the query, or of the first one."""
    service = state_of(request).service(request.query_params.get("model"))
    version = (await show_version())["version"]
    special = service.tokenizer.special_tokens
    return {
        "default_generation_settings": {
            "n_ctx": service.max_positions,
            "params": _default_params(service),
        },
        "total_slots": service.engine.stats().max_running,
        "model_alias": service.model_name,
        # The name alone: a path of the server's is nobody else's business.
        "model_path": service.model_name,
        "modalities": {"vision": False, "audio": False},
        "chat_template": service.template.source if service.template else "",
        "bos_token": special.get("bos_token", ""),
        "eos_token": special.get("eos_token", ""),
        "build_info": f"coldpress-{version}",
        "is_sleeping": False,
    }


async def show_slots(request: Request) -> list[dict[str, Any]]:
    """One entry per place in the batch, taken or free; 503 with `fail_on_no_slot` if none is free.

    Who has a place, and what is generated there, is not told.
    """
    service = state_of(request).service(request.query_params.get("model"))
    stats = service.engine.stats()
    if request.query_params.get("fail_on_no_slot") and stats.num_running >= stats.max_running:
        raise ApiError(503, "no slot is free", headers={"Retry-After": "1"})
    return [
        {"id": slot, "n_ctx": service.max_positions, "is_processing": slot < stats.num_running}
        for slot in range(stats.max_running)
    ]


def _default_params(service: GenerationService) -> dict[str, Any]:
    """What a request gets that asks for nothing, under llama.cpp's names."""
    chosen = SamplingParams(**service.sampling_defaults)
    return {
        "temperature": chosen.temperature,
        "top_k": chosen.top_k,
        "top_p": chosen.top_p,
        "min_p": chosen.min_p,
        "presence_penalty": chosen.presence_penalty,
        "frequency_penalty": chosen.frequency_penalty,
        "repeat_penalty": chosen.repetition_penalty,
    }
