"""POST /v1/chat/completions."""

from functools import partial

from starlette.requests import Request
from starlette.responses import Response

from runtime.engine.request import RequestError
from runtime.server.answers import collected, json_answer, streamed
from runtime.server.bodies import read_fields, validated
from runtime.server.chat_answer import ChatAnswer
from runtime.server.constraints import constraint_of
from runtime.server.effort import effort_variables
from runtime.server.encoding import encoded
from runtime.server.message_reader import reader_of
from runtime.server.messages import checked_messages
from runtime.server.routing import App
from runtime.server.schemas import ChatBody
from runtime.server.state import generation_params, kept_tokens, state_of, submit_all
from runtime.server.tool_calls import tool_use_of


def add_routes(app: App) -> None:
    app.add_api_route("/v1/chat/completions", create_chat, methods=["POST"])


async def create_chat(request: Request) -> Response:
    """Answer a conversation, whole or as a stream."""
    state = state_of(request)
    body = validated(ChatBody, await read_fields(request, state.limits))
    service = await state.lease(request, body.model)
    _check(body)
    tools = await tool_use_of(service, body)
    constraint = tools.constraint or await constraint_of(body)
    max_tokens = body.max_completion_tokens or body.max_tokens
    encode = partial(
        service.encode_chat,
        add_generation_prompt=body.add_generation_prompt is not False,
        continue_final=bool(body.continue_final_message),
        keep_last=kept_tokens(service, body, max_tokens),
    )
    effort = effort_variables(service, body.reasoning_effort, "reasoning_effort")
    messages = tools.messages(checked_messages(body.messages, service.template))
    variables = tools.variables({**effort, **(body.chat_template_kwargs or {})})
    prompt = await encoded(request, encode, messages, variables)
    params = generation_params(
        body,
        service.sampling_defaults,
        max_tokens=max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        prompt_logprobs=body.prompt_logprobs,
        constraint=constraint,
    )
    generations = submit_all(service, [prompt], tools.params(params))
    # What is constrained has no thoughts, even where the prompt begins one.
    is_bound = tools.must_call or (constraint is not None and tools.offer is None)
    thoughts = "none" if is_bound else body.reasoning_format
    readers = [reader_of(service, prompt, thoughts, tools.reader()) for _ in params]
    answer = ChatAnswer(service, body, prompt, generations, readers)
    if body.stream:
        return streamed(generations, state, answer.chunks, answer.usage_chunk)
    return json_answer(answer.whole(await collected(request, generations, state.metrics)))


def _check(body: ChatBody) -> None:
    """RequestError for fields that contradict each other."""
    if body.top_logprobs is not None and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs to be true", "top_logprobs")
    if body.continue_final_message and body.add_generation_prompt:
        raise RequestError(
            "continue_final_message and add_generation_prompt exclude each other",
            "continue_final_message",
        )
