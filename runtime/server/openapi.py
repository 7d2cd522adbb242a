"""GET /openapi.json: the interface as a document, made of the types that requests are read with."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.responses import JSONResponse, Response

from runtime.server import openapi_answers as answers
from runtime.server.embeddings import EmbeddingBody
from runtime.server.responses_schema import ResponseBody
from runtime.server.routing import App
from runtime.server.schemas import ChatBody, CompletionBody
from runtime.server.tokens import DetokenizeBody, TemplateBody, TokenizeBody

Json = dict[str, Any]
_REFERENCES = "#/components/schemas/{model}"
_MAY_FAIL = {
    "400": "a field is wrong, or would not be honoured; `param` names it",
    "401": "the API key is missing or wrong",
    "404": "there is no such model",
    "408": "the body, or the answer, took too long",
    "413": "the body is too large",
    "429": "the queue is full; Retry-After says when to come back",
    "500": "the answer could not be finished",
    "503": "the server is shutting down, or a model cannot be loaded",
}


@dataclass(frozen=True)
class Operation:
    """One route. answer: None for one without a body of its own; streams: events, where asked."""

    method: Literal["get", "post"]
    path: str
    summary: str
    body: type[BaseModel] | None = None
    answer: type[BaseModel] | None = None
    streams: bool = False


OPERATIONS = (
    Operation(
        "post", "/v1/chat/completions", "Answer a chat", ChatBody, answers.ChatCompletion, True
    ),
    Operation(
        "post", "/v1/completions", "Continue prompts", CompletionBody, answers.Completion, True
    ),
    Operation("post", "/v1/embeddings", "Embed texts", EmbeddingBody, answers.Embeddings),
    Operation("post", "/v1/responses", "Answer a chat", ResponseBody, answers.ResponseObject, True),
    Operation("get", "/v1/models", "Every model", answer=answers.ModelList),
    Operation("post", "/tokenize", "Token ids of a text or a chat", TokenizeBody),
    Operation("post", "/detokenize", "The text of token ids", DetokenizeBody),
    Operation("post", "/apply-template", "A chat as the model reads it", TemplateBody),
    Operation("get", "/version", "The version of coldpress", answer=answers.Version),
)


def add_routes(app: App) -> None:
    app.add_api_route("/openapi.json", show_document, methods=["GET"])


async def show_document() -> Response:
    """The document; it is the same for every server of one version."""
    return JSONResponse(document())


@cache
def document() -> Json:
    """OpenAPI 3.1 of the routes that have types; other servers' routes are theirs to describe."""
    used = {one for operation in OPERATIONS for one in (operation.body, operation.answer) if one}
    ordered = sorted(used | {answers.ErrorAnswer}, key=lambda model: model.__name__)
    references, definitions = models_json_schema(
        [(model, "validation") for model in ordered], ref_template=_REFERENCES
    )
    schemas: dict[type[Any], Json] = {model: found for (model, _), found in references.items()}
    paths: dict[str, Json] = {}
    for operation in OPERATIONS:
        described = _described(operation, schemas)
        paths.setdefault(operation.path, {})[operation.method] = described
    return {
        "openapi": "3.1.0",
        "info": {"title": "coldpress", "version": _version()},
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _described(operation: Operation, schemas: Mapping[type[Any], Json]) -> Json:
    answer: Json = {} if operation.answer is None else schemas[operation.answer]
    content: Json = {"application/json": {"schema": answer}}
    if operation.streams:
        content["text/event-stream"] = {"schema": {}}
    failure = {"application/json": {"schema": schemas[answers.ErrorAnswer]}}
    described: Json = {
        "operationId": operation.path.removeprefix("/v1").strip("/").replace("/", "_"),
        "summary": operation.summary,
        "responses": {
            "200": {"description": "the answer", "content": content},
            **{code: {"description": why, "content": failure} for code, why in _MAY_FAIL.items()},
        },
    }
    if operation.body is not None:
        schema = {"schema": schemas[operation.body]}
        described["requestBody"] = {"required": True, "content": {"application/json": schema}}
    return described


def _version() -> str:
    try:
        return version("coldpress")
    except PackageNotFoundError:
        return "unknown"
