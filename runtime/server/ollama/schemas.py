"""Ollama's request bodies: what is honoured, and what is refused by name."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from runtime.engine.request import RequestError
from runtime.server.schemas import MAX_STOP_STRINGS, MAX_TOP_LOGPROBS, StopString

_NOTHING: tuple[Any, ...] = (None, "", [], {}, False)
_REFUSED = {
    "suffix": "filling in the middle is not offered",
    "template": "the template is the model's own; render it yourself and send it as 'raw'",
    "context": "send the conversation to /api/chat instead",
    "images": "this server serves text models",
    "width": "this server serves text models",
    "height": "this server serves text models",
    "steps": "this server serves text models",
    "_debug_render_only": "POST /apply-template renders a conversation",
}


class AskBody(BaseModel):
    """What /api/generate and /api/chat have in common.

    keep_alive, truncate and shift have no effect: when models are unloaded is the operator's
    decision, and a prompt that does not fit is refused rather than cut.
    """

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())

    model: str = Field(min_length=1)
    stream: bool | None = None
    format: str | dict[str, Any] | None = None
    options: dict[str, Any] | None = None
    think: bool | str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)


class GenerateBody(AskBody):
    """POST /api/generate."""

    prompt: str | None = None
    system: str | None = None
    raw: bool | None = None


class ChatBody(AskBody):
    """POST /api/chat."""

    messages: list[Any] | None = None
    tools: list[Any] | None = None


class EmbedBody(BaseModel):
    """POST /api/embed. truncate: longer inputs are cut at their end; else they are refused."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())

    model: str = Field(min_length=1)
    input: Any
    truncate: bool | None = None
    dimensions: int | None = Field(None, ge=1)


class OldEmbedBody(BaseModel):
    """POST /api/embeddings, of older clients."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())

    model: str = Field(min_length=1)
    prompt: str


class ShowBody(BaseModel):
    """POST /api/show; `name` is what older clients write."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())

    model: str | None = None
    name: str | None = None


class Options(BaseModel):
    """`options`, those that change an answer. Bounds are OpenAI's where Ollama has none."""

    model_config = ConfigDict(strict=True, extra="ignore")

    num_ctx: int | None = Field(None, ge=1)
    num_predict: int | None = Field(None, ge=-2)
    temperature: float | None = Field(None, ge=0, le=2)
    top_k: int | None = Field(None, ge=-1, le=2**31 - 1)
    top_p: float | None = Field(None, gt=0, le=1)
    min_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), le=2**64 - 1)
    stop: list[StopString] | None = Field(None, max_length=MAX_STOP_STRINGS)
    repeat_penalty: float | None = Field(None, gt=0, le=10)
    repeat_last_n: int | None = Field(None, ge=-1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)


def refuse_unsupported(fields: dict[str, Any]) -> None:
    """RequestError naming the first field that asks for what would not be done."""
    for name, why in _REFUSED.items():
        if fields.get(name) not in _NOTHING:
            raise RequestError(f"'{name}' is not supported: {why}", name, "unsupported_field")
