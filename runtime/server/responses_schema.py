"""The body of POST /v1/responses."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from runtime.engine.constraint import Constraint
from runtime.engine.request import RequestError
from runtime.server.constraints import ConstraintFields, constraint_of
from runtime.server.refused import unsupported
from runtime.server.schemas import Effort, SamplingBody
from runtime.server.tool_calls import CHOICES, FUNCTION, ToolFields

ROLES = ("system", "developer", "user", "assistant")
TEXT_PARTS = ("input_text", "output_text", "text", "reasoning_text", "summary_text")
_PARTS = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["type", "text"],
        "properties": {"type": {"enum": list(TEXT_PARTS)}, "text": {"type": "string"}},
    },
}
_TEXT = {"oneOf": [{"type": "string"}, _PARTS]}


def _item(kind: str, required: tuple[str, ...], **properties: Any) -> dict[str, Any]:
    """An item of the input that says its type."""
    return {
        "type": "object",
        "required": ["type", *required],
        "properties": {"type": {"const": kind}, **properties},
    }


_MESSAGE = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "type": {"const": "message"},
        "role": {"enum": list(ROLES)},
        "content": _TEXT,
    },
}
_STRING = {"type": "string"}
_INPUT = {
    "oneOf": [
        {"type": "string"},
        {
            "type": "array",
            "minItems": 1,
            "items": {
                "anyOf": [
                    _MESSAGE,
                    _item("reasoning", (), content=_TEXT, summary=_PARTS | {"minItems": 0}),
                    _item(
                        "function_call",
                        ("call_id", "name", "arguments"),
                        call_id=_STRING,
                        name=_STRING,
                        arguments={**_STRING, "description": "The text of a JSON object."},
                    ),
                    _item(
                        "function_call_output",
                        ("call_id", "output"),
                        call_id={**_STRING, "description": "That of a call before it."},
                        output=_TEXT,
                    ),
                ]
            },
        },
    ]
}


_TOOLS = {
    "type": ["array", "null"],
    "items": _item("function", ("name",), **FUNCTION),
}
_NAMED = _item("function", ("name",), name=FUNCTION["name"])


class ReasoningOptions(BaseModel):
    """effort: told to the chat template, see `effort_variables`. summary: thoughts come whole."""

    model_config = ConfigDict(strict=True)

    effort: Effort | None = None
    summary: Literal["auto"] | None = None
    generate_summary: Literal["auto"] | None = None


class ResponseBody(ToolFields, ConstraintFields, SamplingBody):
    """POST /v1/responses, without anything that is kept between requests."""

    input: Annotated[Any, WithJsonSchema(_INPUT)]
    """See `responses_input.messages_of_input`."""
    tools: Annotated[Any, WithJsonSchema(_TOOLS)] = None
    tool_choice: Annotated[Any, WithJsonSchema({"anyOf": [*CHOICES, _NAMED]})] = None
    text: dict[str, Any] | None = None
    """Its `format` is what `response_format` is in a chat, with the schema one level up."""
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    n: Literal[1] | None = None
    store: bool | None = None
    truncation: str | None = None
    reasoning: ReasoningOptions | None = None
    metadata: dict[str, Any] | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    reasoning_format: Literal["auto", "deepseek", "none"] | None = None


def check_response_body(body: ResponseBody) -> None:
    """RequestError for what needs something to be kept, or cut."""
    if body.store:
        raise unsupported("store must be false: this server keeps no responses", "store")
    if body.truncation not in (None, "disabled"):
        raise unsupported(
            "truncation must be 'disabled'; truncate_prompt_tokens cuts where that is wanted",
            "truncation",
        )
    if (body.text or {}).get("verbosity") not in (None, "medium"):
        raise unsupported("text.verbosity is not supported here; leave it out", "text")


async def constraint_of_response(body: ResponseBody) -> Constraint | None:
    """What the text must be; see `constraint_of`."""
    format_ = (body.text or {}).get("format")
    if format_ is None:
        return await constraint_of(body)
    if isinstance(format_, dict) and format_.get("type") == "json_schema":
        format_ = {"type": "json_schema", "json_schema": format_}
    try:
        return await constraint_of(body.model_copy(update={"response_format": format_}))
    except RequestError as error:
        param = "text" if error.param == "response_format" else error.param
        raise RequestError(str(error), param, error.code) from error
