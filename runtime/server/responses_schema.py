"""The body of POST /v1/responses, and its input as the messages of a chat."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from runtime.engine.constraint import Constraint
from runtime.engine.request import RequestError
from runtime.server.constraints import ConstraintFields, constraint_of
from runtime.server.schemas import TEXT_CONTENT, GenerationBody

_TEXT_PARTS = ("input_text", "output_text", "text")


_INPUT = {
    "oneOf": [
        {"type": "string"},
        {
            "type": "array",
            "minItems": 1,
            "items": {
                "type": "object",
                "required": ["role", "content"],
                "properties": {
                    "role": {"type": "string"},
                    "content": TEXT_CONTENT,
                },
            },
        },
    ]
}


class ReasoningOptions(BaseModel):
    """effort: given to the chat template as `reasoning_effort`."""

    model_config = ConfigDict(strict=True)

    effort: str | None = None


class ResponseBody(ConstraintFields, GenerationBody):
    """POST /v1/responses, without anything that is kept between requests."""

    input: Annotated[Any, WithJsonSchema(_INPUT)]
    """Checked by `messages_of_input`."""
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
        raise _unsupported("store must be false: this server keeps no responses", "store")
    if body.truncation not in (None, "disabled"):
        raise _unsupported(
            "truncation must be 'disabled'; truncate_prompt_tokens cuts where that is wanted",
            "truncation",
        )


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


def messages_of_input(body: ResponseBody) -> list[dict[str, Any]]:
    """The conversation. RequestError for the first item that is no message of text."""
    messages = [] if body.instructions is None else [_message("system", body.instructions)]
    if isinstance(body.input, str):
        return [*messages, _message("user", body.input)]
    if not isinstance(body.input, list) or not body.input:
        raise RequestError("input must be a string or a list of messages", "input")
    return [*messages, *(_item(index, item) for index, item in enumerate(body.input))]


def _item(index: int, item: object) -> dict[str, Any]:
    if not isinstance(item, dict) or not isinstance(item.get("role"), str):
        kind = item.get("type") if isinstance(item, dict) else type(item).__name__
        raise _unsupported(f"input[{index}] is a '{str(kind)[:40]}' and no message", "input")
    return _message(item["role"], _text(index, item.get("content")))


def _text(index: int, content: object) -> str:
    if isinstance(content, str):
        return content
    parts: list[Any] = content if isinstance(content, list) else [content]
    for part in parts:
        kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
        if kind not in _TEXT_PARTS or not isinstance(part.get("text"), str):
            raise _unsupported(
                f"input[{index}].content holds a part of type '{str(kind)[:40]}'; "
                "only text parts are supported",
                "input",
            )
    return "\n".join(part["text"] for part in parts)


def _message(role: str, content: str) -> dict[str, Any]:
    return {"role": role, "content": content}


def _unsupported(message: str, field: str) -> RequestError:
    return RequestError(message, field, "unsupported_field")
