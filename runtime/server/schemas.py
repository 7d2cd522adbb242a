"""Request bodies: the fields that are honoured. See `refused` for those that are not."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, WithJsonSchema

from runtime.engine.request import RequestError
from runtime.server.constraints import ConstraintFields
from runtime.server.tool_calls import ToolFields

MAX_STOP_STRINGS = 16
MAX_STOP_LENGTH = 1024
MAX_N = 16
MAX_BAD_WORDS = 128
MAX_TOP_LOGPROBS = 20
MAX_SECONDS = 24 * 3600

Seconds = Annotated[float, Field(gt=0, le=MAX_SECONDS, allow_inf_nan=False)]
StopString = Annotated[str, StringConstraints(min_length=1, max_length=MAX_STOP_LENGTH)]
Effort = Annotated[str, StringConstraints(min_length=1, max_length=64)]

ROLES = ("system", "developer", "user", "assistant", "tool")
"""Those of a chat that any model takes; others are the model's own."""

_PROMPTS = {
    "oneOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1},
        {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1},
        {
            "type": "array",
            "items": {
                "type": "array",
                "items": {"type": "integer", "minimum": 0},
                "minItems": 1,
            },
            "minItems": 1,
        },
    ]
}
TEXT_CONTENT = {
    "oneOf": [
        {"type": "string"},
        {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["type", "text"],
                "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
            },
        },
    ]
}
_MESSAGES = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["role", "content"],
        "properties": {"role": {"enum": list(ROLES)}, "content": TEXT_CONTENT},
    },
}
Prompts = Annotated[Any, WithJsonSchema(_PROMPTS)]
"""Checked by `prompts_of`, which stops at their length."""
Messages = Annotated[list[Any], WithJsonSchema(_MESSAGES)]
"""Checked by `checked_messages`, which stops at the first entry that is wrong."""


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_obfuscation: Literal[False] | None = None


class SamplingBody(BaseModel):
    """What every route has that generates; null means the default everywhere."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())

    model: str | None = None
    stream: bool | None = None
    n: int | None = Field(None, ge=1, le=MAX_N)
    seed: int | None = Field(None, ge=-(2**63), le=2**64 - 1)
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None = None
    stop_token_ids: list[int] | None = Field(None, max_length=256)
    include_stop_str_in_output: bool | None = None
    min_tokens: int | None = Field(None, ge=0)
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=2**31 - 1)
    min_p: float | None = Field(None, ge=0, le=1)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    logit_bias: dict[str, Any] | None = None
    """Checked by `bias_of`, which stops at the first entry that is wrong."""
    bad_words: Annotated[list[StopString], Field(max_length=MAX_BAD_WORDS)] | None = None
    allowed_token_ids: list[int] | None = Field(None, min_length=1, max_length=2**18)
    truncate_prompt_tokens: int | None = Field(None, ge=-1)
    """Only so many of the prompt's last tokens are used; -1 for what the context leaves."""
    priority: int | None = Field(None, ge=-(2**31), le=2**31 - 1)
    cache_salt: Annotated[str, StringConstraints(max_length=256)] | None = None
    queue_timeout_seconds: Seconds | None = None
    """If it has not begun by then, the answer is 408. --queue-timeout holds as well."""
    timeout_seconds: Seconds | None = None
    """The same for the whole answer, beside --deadline."""


class GenerationBody(SamplingBody):
    """What chat and plain completions have in common."""

    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(None, ge=1)
    prompt_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    timings_per_token: bool | None = None
    """Whether answers carry llama.cpp's `timings`."""

    @property
    def wants_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)

    @property
    def wants_usage_always(self) -> bool:
        options = self.stream_options
        return bool(self.wants_usage and options and options.continuous_usage_stats)


class ChatBody(ToolFields, ConstraintFields, GenerationBody):
    """POST /v1/chat/completions."""

    messages: Messages = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    reasoning_effort: Effort | None = None
    """Told to the chat template, see `effort_variables`."""
    reasoning_format: Literal["auto", "deepseek", "none"] | None = None
    """llama.cpp's: with "none" a model's thoughts stay in its content."""


class CompletionBody(ConstraintFields, GenerationBody):
    """POST /v1/completions."""

    prompt: Prompts
    max_tokens: int | None = Field(None, ge=0)
    """0 asks for the prompt alone, with `echo` or `prompt_logprobs`."""
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: bool | None = None
    add_special_tokens: bool | None = None


def prompts_of(prompt: object, max_prompts: int, name: str = "prompt") -> list[str | list[int]]:
    """A prompt field as a list of prompts, each text or token ids. RequestError if it is none."""
    if isinstance(prompt, str):
        return [prompt]
    if not isinstance(prompt, list) or not prompt:
        raise _not_a_prompt(name)
    if _is_token_ids(prompt):
        return [prompt]
    if len(prompt) > max_prompts:
        raise RequestError(
            f"{name} holds {len(prompt)} prompts; at most {max_prompts} are allowed", name
        )
    if not all(isinstance(one, str) or (_is_token_ids(one) and one) for one in prompt):
        raise _not_a_prompt(name)
    return list(prompt)


def bias_of(logit_bias: dict[str, Any] | None) -> dict[int, float]:
    """Bias by token id. RequestError for the first entry that is no id, or not in -100..100."""
    bias = {}
    for key, value in (logit_bias or {}).items():
        if not (key.isascii() and key.isdecimal() and len(key) < 10):
            raise RequestError(f"logit_bias: '{key[:50]}' is not a token id", "logit_bias")
        if type(value) not in (int, float) or not -100 <= value <= 100:
            raise RequestError(
                f"logit_bias of token {key} must be a number between -100 and 100", "logit_bias"
            )
        bias[int(key)] = float(value)
    return bias


def _is_token_ids(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int for item in value)


def _not_a_prompt(name: str) -> RequestError:
    return RequestError(
        f"{name} must be a string, a list of strings, a list of token ids or a list of such lists",
        name,
    )
