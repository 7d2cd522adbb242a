"""What a client reads when a model cannot answer now."""

from collections.abc import Iterable

from runtime.server.errors import ApiError
from runtime.server.registry_models import ServedModel

_SOON = {"Retry-After": "1"}


def unknown_model(name: str, known: Iterable[str]) -> ApiError:
    return ApiError(
        404,
        f"the model '{name[:100]}' does not exist; this server has: {', '.join(known)}",
        param="model",
        code="model_not_found",
    )


def not_loaded(model: ServedModel) -> ApiError:
    return ApiError(
        503,
        f"the model '{model.name}' is not loaded; an operator loads it with "
        f"POST /v1/admin/models/{model.name}/load",
        param="model",
        code="model_not_loaded",
        headers={"x-should-retry": "false"},
    )


def load_failed(model: ServedModel, retry_seconds: float) -> ApiError:
    return ApiError(
        503,
        f"the model '{model.name}' could not be loaded: {model.failure}",
        param="model",
        code="model_load_failed",
        headers={"Retry-After": str(max(1, round(retry_seconds)))},
    )


def too_many_waiting(model: ServedModel) -> ApiError:
    return ApiError(
        429,
        f"the model '{model.name}' is being loaded and {model.num_awaiting} requests wait for it "
        "already",
        code="rate_limit_exceeded",
        headers=_SOON,
    )


def shutting_down() -> ApiError:
    return ApiError(503, "the server is shutting down", code="shutting_down", headers=_SOON)


def conflict(model: ServedModel, what: str) -> ApiError:
    """An operator's wish that the model's state does not allow."""
    return ApiError(409, f"the model '{model.name}' {what}", param="model", code="model_busy")
