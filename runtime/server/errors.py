"""Errors as OpenAI clients expect them; `error_body` is the only place that makes one."""

from collections.abc import Mapping
from math import ceil
from typing import Any

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from runtime.engine.request import RequestError
from runtime.server.field_errors import first_fault

_MAX_MESSAGE = 1000
_MAX_FIELD = 200
_MAX_PATH = 100
_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    503: "overloaded",
}
_NO_RETRY = {"x-should-retry": "false"}
"""OpenAI's clients ask three times otherwise, also for what fails alike every time."""
_CLIENT_CLOSED = 499
_RETRY_SECONDS = "1"
_LONGEST_RETRY_SECONDS = 60
_FLAT_PATHS = ("/v2/", "/api/")


class ApiError(Exception):
    """An answer other than 200. `code` is a machine-readable word, `param` the field at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.param = param
        self.code = code
        self.headers = headers or {}

    def body(self) -> dict[str, Any]:
        return error_body(self.status, str(self), self.param, self.code)


def error_body(
    status: int, message: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """OpenAI's error object, bounded in size whatever the client sent."""
    error = {
        "message": _shortened(message, _MAX_MESSAGE),
        "type": _kind(status, code),
        "param": None if param is None else _shortened(param, _MAX_FIELD),
        "code": code,
    }
    return {"error": error}


def _kind(status: int, code: str | None) -> str:
    if code == "model_not_found":
        return "not_found"
    return _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")


def error_response(error: ApiError, path: str) -> Response:
    """The error in the shape that clients of that path read: KServe and Ollama have one line of
    text, all others OpenAI's object."""
    body = error.body()
    if path.startswith(_FLAT_PATHS):
        body = {"error": body["error"]["message"]}
    return JSONResponse(body, status_code=error.status, headers=error.headers)


def from_request_error(error: RequestError) -> ApiError:
    """The engine's and the text side's refusals, with the status that tells a client what to do."""
    if error.code == "queue_full":
        return ApiError(429, str(error), code="rate_limit_exceeded", headers=_retry_after(error))
    if error.code == "quarantined":
        return ApiError(400, str(error), code=error.code, headers=_NO_RETRY)
    if error.code in ("shutting_down", "model_unavailable"):
        return ApiError(503, str(error), code=error.code, headers={"Retry-After": _RETRY_SECONDS})
    return ApiError(400, str(error), param=error.param, code=error.code)


def from_validation_error(error: ValidationError, fields: Mapping[str, Any]) -> ApiError:
    """The first field that is wrong, named; the client's own values are not echoed."""
    message, param = first_fault(error, fields)
    return ApiError(400, message, param=param)


def _retry_after(error: RequestError) -> dict[str, str]:
    """Whole seconds; clients take no more than a minute seriously, and come back at once."""
    seconds = ceil(error.retry_after_seconds or 0)
    return {"Retry-After": str(min(max(seconds, 1), _LONGEST_RETRY_SECONDS))}


def timed_out(sentence: str | None, *, is_own: bool) -> ApiError:
    """A time was over: one that the request sets itself, after which nobody wants the answer any
    more, or one that the server sets; then there may be more of it later."""
    headers = _NO_RETRY if is_own else {"Retry-After": _RETRY_SECONDS}
    status = 408 if is_own else 503
    message = sentence or "the request took too long"
    return ApiError(status, message, code="timeout", headers=headers)


def generation_failed(sentence: str | None) -> ApiError:
    """The engine could not finish an answer; trying the same again would fail the same way."""
    message = sentence or "the answer was aborted by the server"
    return ApiError(500, message, code="generation_failed", headers=_NO_RETRY)


def internal_error() -> ApiError:
    """What nobody foresaw; the same would most likely happen again."""
    return ApiError(500, "internal error; the server's log has the details", headers=_NO_RETRY)


def client_left() -> ApiError:
    """For the log and the counters: nobody is there to read it."""
    return ApiError(_CLIENT_CLOSED, "the client closed the connection")


async def on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error_response(error, request.url.path)


async def on_request_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestError)
    return error_response(from_request_error(error), request.url.path)


async def on_http_error(request: Request, error: Exception) -> Response:
    """Unknown routes and methods."""
    assert isinstance(error, HTTPException)
    headers, path = dict(error.headers or {}), request.url.path[:_MAX_PATH]
    message = str(error.detail)
    if error.status_code == 404:
        known = {getattr(route, "path", None) for route in request.app.routes}
        meant = f"; did you mean /v1{path}?" if f"/v1{path}" in known else ""
        message = f"there is no route {path}{meant or '; GET /openapi.json lists the main ones'}"
    elif error.status_code == 405:
        message = f"{path} takes {headers.get('Allow', 'other methods')}, not {request.method[:16]}"
    return error_response(ApiError(error.status_code, message, headers=headers), request.url.path)


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
