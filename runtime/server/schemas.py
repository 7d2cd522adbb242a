"""Request bodies: the fields that are honoured, and those that are refused by name.

Keys that nobody here knows are accepted, since clients send many that change nothing. A key that
asks for a constraint or for output which would be missing is refused: see REFUSED.
"""

from collections.abc import Container
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
        "properties": {"role": {"type": "string"}, "content": TEXT_CONTENT},
    },
}
Prompts = Annotated[Any, WithJsonSchema(_PROMPTS)]
"""Checked by `prompts_of`, which stops at their length."""
Messages = Annotated[list[Any], WithJsonSchema(_MESSAGES)]
"""Checked by `messages_of`, which stops at the first entry that is wrong."""

_NO_LIST: tuple[Any, ...] = (None, [])
_NO_OBJECT: tuple[Any, ...] = (None, {})
_OFF: tuple[Any, ...] = (None, False)
REFUSED: dict[str, tuple[Any, ...]] = {
    "tools": _NO_LIST,
    "tool_choice": (None, "none", "auto"),
    "functions": _NO_LIST,
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "structured_outputs": _NO_OBJECT,
    "guided_json": (None,),
    "guided_regex": (None,),
    "guided_choice": (None,),
    "guided_grammar": (None,),
    "guided_decoding_backend": (None,),
    "guided_whitespace_pattern": (None,),
    "grammar": (None, ""),
    "json_schema": _NO_OBJECT,
    "regex": (None,),
    "best_of": (None, 1),
    "suffix": (None, ""),
    "echo": _OFF,
    "prompt_logprobs": (None,),
    "use_beam_search": _OFF,
    "bad_words": _NO_LIST,
    "allowed_token_ids": _NO_LIST,
    "truncate_prompt_tokens": (None,),
    "include_stop_str_in_output": _OFF,
    "return_token_ids": _OFF,
    "return_tokens_as_token_ids": _OFF,
    "logits_processors": _NO_LIST,
    "chat_template": (None,),
    "add_generation_prompt": (None, True),
    "continue_final_message": _OFF,
    "documents": _NO_LIST,
    "modalities": (None, ["text"]),
    "audio": (None,),
    "web_search_options": (None,),
    "prompt_embeds": (None,),
    "dimensions": (None,),
    "previous_response_id": (None,),
    "conversation": (None,),
    "background": _OFF,
    "include": _NO_LIST,
    "text": (None, {}, {"format": {"type": "text"}}),
}
"""Fields that would be dropped silently, each with the values that ask for nothing. A body that
declares one of them honours it."""


class StreamOptions(BaseModel):
    model_config = ConfigDict(strict=True)

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class GenerationBody(BaseModel):
    """What chat and plain completions have in common; null means the default everywhere."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = Field(None, ge=1, le=MAX_N)
    seed: int | None = Field(None, ge=-(2**63), le=2**64 - 1)
    stop: StopString | Annotated[list[StopString], Field(max_length=MAX_STOP_STRINGS)] | None = None
    stop_token_ids: list[int] | None = Field(None, max_length=256)
    include_stop_str_in_output: bool | None = None
    max_tokens: int | None = Field(None, ge=1)
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
    prompt_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    priority: int | None = Field(None, ge=-(2**31), le=2**31 - 1)
    cache_salt: Annotated[str, StringConstraints(max_length=256)] | None = None
    queue_timeout_seconds: Seconds | None = None
    """If it has not begun by then, the answer is 408. --queue-timeout holds as well."""
    timeout_seconds: Seconds | None = None
    """The same for the whole answer, beside --deadline."""
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


def refuse_unsupported(fields: dict[str, Any], honoured: Container[str]) -> None:
    """RequestError naming the first field that asks for what would not be done."""
    for name, neutral in REFUSED.items():
        if name in honoured or name not in fields:
            continue
        if not any(_same(fields[name], value) for value in neutral):
            raise RequestError(
                f"'{name}' is not supported by this server; leave it out", name, "unsupported_field"
            )


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


def messages_of(body: ChatBody) -> list[dict[str, Any]]:
    """The messages of a chat, see `checked_messages`."""
    return checked_messages(body.messages)


def checked_messages(messages: list[Any]) -> list[dict[str, Any]]:
    """The messages, each an object with a role. RequestError for the first that is not."""
    for index, message in enumerate(messages):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RequestError(f"messages[{index}] must be an object with a role", "messages")
    return messages


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


def _same(value: object, neutral: object) -> bool:
    return type(value) is type(neutral) and value == neutral
