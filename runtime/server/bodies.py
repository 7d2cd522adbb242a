"""From the bytes of a request to a validated body."""

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from starlette.requests import Request

from runtime.server.errors import from_validation_error
from runtime.server.limits import Limits, parse_object, read_body
from runtime.server.refused import refuse_unsupported

Body = TypeVar("Body", bound=BaseModel)

FIELDS = "coldpress.fields"
"""Where a request's scope keeps what `read_fields` has read."""


_BYTES = "coldpress.body_bytes"


async def read_fields(request: Request, limits: Limits) -> dict[str, Any]:
    """The body's JSON object. ApiError for a body that is too large, too slow or not JSON."""
    body = await read_body(request, limits)
    fields = parse_object(body)
    request.scope[FIELDS], request.scope[_BYTES] = fields, len(body)
    return fields


def fields_of(request: Request) -> dict[str, Any]:
    """What `read_fields` has read of this request; empty before that."""
    fields: dict[str, Any] = request.scope.get(FIELDS, {})
    return fields


def body_bytes_of(request: Request) -> int:
    """The size of what `read_fields` has read of this request; 0 before that."""
    size: int = request.scope.get(_BYTES, 0)
    return size


def validated(model: type[Body], fields: dict[str, Any]) -> Body:
    """The body as its type. RequestError for a field that would not be honoured, ApiError naming
    the first one that is wrong."""
    indifferent: frozenset[str] = getattr(model, "indifferent", frozenset())
    refuse_unsupported(fields, model.model_fields.keys() | indifferent)
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        raise from_validation_error(error, fields) from None
