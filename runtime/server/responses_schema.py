"""The body of POST /v1/responses."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

from runtime.engine.constraint import Constraint
from runtime.engine.request import RequestError
from runtime.server.constraints import ConstraintFields, constraint_of
from runtime.server.schemas import TEXT_CONTENT, GenerationBody
from runtime.server.tool_calls import ToolFields

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


class ResponseBody(ToolFields, ConstraintFields, GenerationBody):
    """POST /v1/responses, without anything that is kept between requests."""

    input: Annotated[Any, WithJsonSchema(_INPUT)]
    """See `responses_input.messages_of_input`."""
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


def unsupported(message: str, field: str) -> RequestError:
    return RequestError(message, field, "unsupported_field")
