"""POST /api/generate and /api/chat."""

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from runtime.engine.constraint import Constraint
from runtime.engine.request import RequestError
from runtime.server import schemas as openai
from runtime.server.answers import collected, json_answer
from runtime.server.bodies import read_fields, validated
from runtime.server.effort import effort_variables
from runtime.server.encoding import encoded
from runtime.server.flat_streams import line_stream
from runtime.server.message_reader import reader_of
from runtime.server.ollama.answer import Answer, created_at
from runtime.server.ollama.catalogue import known_name
from runtime.server.ollama.messages import messages_of
from runtime.server.ollama.options import openai_fields, parse_options
from runtime.server.ollama.schemas import AskBody, ChatBody, GenerateBody, refuse_unsupported
from runtime.server.state import ServerState, generation_params, state_of, submit_all
from runtime.server.tool_calls import ToolFields, ToolUse, tool_use_of
from runtime.service import GenerationService
from runtime.text.grammar.check import schema_constraint
from runtime.text.reasoning import has_reasoning

Body = TypeVar("Body", bound=AskBody)


async def generate(request: Request) -> Response:
    """Continue a prompt: as a user's message under the model's template, or as it is if `raw`."""
    arrived, state = time.monotonic(), state_of(request)
    body = await _read(request, state, GenerateBody)
    service = await state.lease(request, known_name(state, body.model))
    loaded = time.monotonic() - arrived
    if not body.prompt:
        return _loaded(service, {"response": ""})
    if body.raw or service.template is None:
        if body.system:
            raise RequestError("'system' needs the model's template, so not 'raw'", "system")
        encode = partial(service.encode, body.prompt)
    else:
        system = [{"role": "system", "content": body.system}] if body.system else []
        messages = [*system, {"role": "user", "content": body.prompt}]
        encode = partial(service.encode_chat, messages, _template_variables(service, body))
    prompt = await encoded(request, encode)
    tools = await tool_use_of(service, ToolFields())
    return await _answer(request, service, body, prompt, tools, (arrived, loaded))


async def chat(request: Request) -> Response:
    """Answer a conversation."""
    arrived, state = time.monotonic(), state_of(request)
    body = await _read(request, state, ChatBody)
    if body.tools and body.format:
        raise RequestError("'tools' and 'format' cannot both hold; leave one out", "format")
    service = await state.lease(request, known_name(state, body.model))
    loaded = time.monotonic() - arrived
    messages = messages_of(body.messages or [], service.template)
    if not messages:
        return _loaded(service, {"message": {"role": "assistant", "content": ""}})
    tools = await tool_use_of(service, ToolFields(tools=body.tools))
    variables = tools.variables(_template_variables(service, body))
    prompt = await encoded(request, service.encode_chat, tools.messages(messages), variables)
    return await _answer(request, service, body, prompt, tools, (arrived, loaded))


async def _read(request: Request, state: ServerState, kind: type[Body]) -> Body:
    fields = await read_fields(request, state.limits)
    refuse_unsupported(fields)
    return validated(kind, fields)


async def _answer(
    request: Request,
    service: GenerationService,
    body: AskBody,
    prompt: Sequence[int],
    tools: ToolUse,
    times: tuple[float, float],
) -> Response:
    """`times`: when the request came, and the seconds until its model was there."""
    constraint = tools.constraint or await _constraint(body)
    options = parse_options(body.options)
    room = _room(service, options.num_ctx, len(prompt))
    asked = validated(openai.CompletionBody, {**openai_fields(options), "prompt": ""})
    params = generation_params(
        asked,
        service.sampling_defaults,
        max_tokens=min(asked.max_tokens or room, room),
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        constraint=constraint,
    )
    (generation,) = submit_all(service, [prompt], tools.params(params))
    # What is constrained has no thoughts, even where the prompt begins one.
    is_bound = constraint is not None and tools.offer is None
    reader = reader_of(service, prompt, "none" if is_bound else None, tools.reader())
    is_chat = isinstance(body, ChatBody)
    answer = Answer(service, generation, reader, is_chat, *times)
    metrics = state_of(request).metrics
    if body.stream is not False:
        return line_stream(generation, metrics, answer.line)
    (deltas,) = await collected(request, [generation], metrics)
    return json_answer(answer.whole(deltas))


def _room(service: GenerationService, num_ctx: int | None, num_prompt_tokens: int) -> int:
    """Tokens that the answer may have. A context smaller than the model's is kept to by refusing
    and ending early, never by cutting the prompt; a larger one is refused."""
    most = service.max_positions
    if num_ctx is not None and num_ctx > most:
        raise RequestError(
            f"options.num_ctx is {num_ctx}, but the context of '{service.model_name}' holds "
            f"{most} tokens",
            "options.num_ctx",
            "context_length_exceeded",
        )
    context = num_ctx or most
    if num_prompt_tokens >= context:
        raise RequestError(
            f"the prompt has {num_prompt_tokens} tokens, but the context holds {context} and must "
            f"leave room for an answer; prompts are not cut here",
            "options.num_ctx" if num_ctx else "prompt",
            "context_length_exceeded",
        )
    return context - num_prompt_tokens


async def _constraint(body: AskBody) -> Constraint | None:
    """What `format` asks for: any JSON object, or what a JSON schema describes."""
    if not body.format:
        return None
    if isinstance(body.format, str) and body.format != "json":
        raise RequestError("'format' must be \"json\" or a JSON schema", "format")
    schema = {"type": "object"} if isinstance(body.format, str) else body.format
    return await run_in_threadpool(schema_constraint, schema, "format")


def _template_variables(service: GenerationService, body: AskBody) -> dict[str, Any]:
    """Whether and how long the model thinks, as its template is told. RequestError where it
    cannot."""
    if isinstance(body.think, str):
        return effort_variables(service, body.think, "think")
    if body.think is None:
        return {}
    if body.think and not (service.template and has_reasoning(service.template.source)):
        raise RequestError(f"'{service.model_name}' does not think; leave 'think' out", "think")
    return {"enable_thinking": body.think}


def _loaded(service: GenerationService, content: dict[str, Any]) -> Response:
    """The answer to a request that asks for nothing: the model is loaded."""
    head = {"model": service.model_name, "created_at": created_at()}
    return json_answer({**head, **content, "done": True, "done_reason": "load"})
