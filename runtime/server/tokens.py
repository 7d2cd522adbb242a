"""POST /tokenize, /detokenize and /apply-template: text, token ids and conversations, each as the
other, in the forms of vLLM (`prompt`, `messages`) and of llama.cpp (`content`)."""

from collections.abc import Sequence
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from runtime.engine.request import RequestError
from runtime.server.bodies import read_fields, validated
from runtime.server.encoding import encoded
from runtime.server.messages import checked_messages
from runtime.server.refused import REFUSED
from runtime.server.routing import App
from runtime.server.schemas import Messages
from runtime.server.state import state_of
from runtime.server.tool_calls import ToolFields, ToolUse, tool_use_of
from runtime.service import GenerationService
from runtime.text.template import ChatTemplate

_MAX_CHARACTERS = 1024 * 1024
_MAX_TOKENS = 1024 * 1024
_OF_PROMPTS = frozenset(
    (
        *("functions", "documents", "chat_template", "truncate_prompt_tokens"),
        *("lora", "lora_path", "adapter_id"),
    )
)


class _Body(BaseModel):
    """indifferent: fields that other routes refuse, and that change nothing here."""

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())
    indifferent: ClassVar[frozenset[str]] = frozenset(REFUSED) - _OF_PROMPTS

    model: str | None = None


class TemplateBody(ToolFields, _Body):
    """POST /apply-template."""

    messages: Messages = Field(min_length=1)
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class TokenizeBody(ToolFields, _Body):
    """POST /tokenize; one of prompt, messages and content. Special tokens are put around a prompt
    unless told otherwise, and around nothing else."""

    prompt: str | None = Field(None, max_length=_MAX_CHARACTERS)
    content: str | None = Field(None, max_length=_MAX_CHARACTERS)
    messages: Messages | None = Field(None, min_length=1)
    add_special_tokens: bool | None = None
    add_special: bool | None = None
    parse_special: bool | None = None
    return_token_strs: bool | None = None
    with_pieces: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeBody(_Body):
    """POST /detokenize."""

    tokens: list[int] = Field(max_length=_MAX_TOKENS)


def add_routes(app: App) -> None:
    app.add_api_route("/tokenize", tokenize, methods=["POST"])
    app.add_api_route("/detokenize", detokenize, methods=["POST"])
    app.add_api_route("/apply-template", apply_template, methods=["POST"])


async def tokenize(request: Request) -> dict[str, Any]:
    """Token ids of a prompt, a conversation or a text."""
    state = state_of(request)
    body = validated(TokenizeBody, await read_fields(request, state.limits))
    given = [name for name in ("prompt", "messages", "content") if getattr(body, name) is not None]
    if len(given) != 1:
        raise RequestError("give one of prompt, messages and content", given[-1] if given else None)
    service = await state.lease(request, body.model)
    if body.content is not None:
        return await encoded(request, _content_tokens, service, body, body.content)
    tools = await tool_use_of(service, body)
    return await encoded(request, _prompt_tokens, service, body, tools)


async def detokenize(request: Request) -> dict[str, str]:
    """Text of token ids, special ones included."""
    state = state_of(request)
    body = validated(DetokenizeBody, await read_fields(request, state.limits))
    service = await state.lease(request, body.model)
    _check_ids(service, body.tokens)
    text = await encoded(request, service.tokenizer.decode, body.tokens, skip_special_tokens=False)
    return {"prompt": text, "content": text}


async def apply_template(request: Request) -> dict[str, str]:
    """The prompt text of a conversation."""
    state = state_of(request)
    body = validated(TemplateBody, await read_fields(request, state.limits))
    service = await state.lease(request, body.model)
    tools = await tool_use_of(service, body)
    return {"prompt": await encoded(request, _rendered, service, body, tools)}


def _rendered(service: GenerationService, body: TemplateBody | TokenizeBody, tools: ToolUse) -> str:
    """The prompt text of a body's messages; RequestError where the model has no template."""
    template = template_of(service)
    return template.render(
        tools.messages(checked_messages(body.messages or [], template)),
        add_generation_prompt=body.add_generation_prompt is not False,
        continue_final=bool(body.continue_final_message),
        variables=tools.variables(body.chat_template_kwargs),
    )


def template_of(service: GenerationService) -> ChatTemplate:
    if service.template is None:
        raise RequestError(f"model '{service.model_name}' has no chat template", "messages")
    return service.template


def _prompt_tokens(
    service: GenerationService, body: TokenizeBody, tools: ToolUse
) -> dict[str, Any]:
    """vLLM's answer."""
    is_chat = body.prompt is None
    text = _rendered(service, body, tools) if body.prompt is None else body.prompt
    special = not is_chat if body.add_special_tokens is None else body.add_special_tokens
    tokens = service.tokenizer.encode(text, add_special_tokens=special)
    names = [service.tokenizer.token_of(id_) for id_ in tokens] if body.return_token_strs else None
    return {
        "count": len(tokens),
        "max_model_len": service.max_positions,
        "tokens": tokens,
        "token_strs": names,
    }


def _content_tokens(
    service: GenerationService, body: TokenizeBody, content: str
) -> dict[str, list[Any]]:
    """llama.cpp's answer; a piece that is no UTF-8 of its own is given as its bytes."""
    tokens = service.tokenizer.encode(
        content,
        add_special_tokens=bool(body.add_special),
        parse_special=body.parse_special is not False,
    )
    if not body.with_pieces:
        return {"tokens": tokens}
    return {"tokens": [{"id": id_, "piece": _piece(service, id_)} for id_ in tokens]}


def _piece(service: GenerationService, token_id: int) -> str | list[int]:
    data = service.tokenizer.token_bytes(token_id)
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


def _check_ids(service: GenerationService, tokens: Sequence[int]) -> None:
    size = service.tokenizer.vocab_size
    wrong = next((id_ for id_ in tokens if not 0 <= id_ < size), None)
    if wrong is not None:
        raise RequestError(
            f"tokens holds {wrong}, but the vocabulary has the ids 0 to {size - 1}", "tokens"
        )
