"""POST /v1/responses: OpenAI's newer interface, without anything that is kept."""

from collections.abc import Iterable
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from runtime.generation import TextDelta
from runtime.server.answers import AnswerFeed, collected, json_answer
from runtime.server.bodies import read_fields, validated
from runtime.server.deltas import Deltas
from runtime.server.effort import effort_variables
from runtime.server.encoding import encoded
from runtime.server.errors import ApiError
from runtime.server.message_reader import reader_of
from runtime.server.responses_answer import ResponseAnswer
from runtime.server.responses_input import messages_of_input
from runtime.server.responses_schema import (
    ResponseBody,
    check_response_body,
    constraint_of_response,
)
from runtime.server.responses_tools import tools_of_response
from runtime.server.routing import App
from runtime.server.sse import EventStream, named_event
from runtime.server.sse_quiet import commented
from runtime.server.state import (
    generation_params,
    kept_tokens,
    state_of,
    submit_all,
)
from runtime.service import GenerationService


def add_routes(app: App) -> None:
    app.add_api_route("/v1/responses", create_response, methods=["POST"])


async def create_response(request: Request) -> Response:
    """Answer a conversation, whole or as a stream of typed events."""
    state = state_of(request)
    body = validated(ResponseBody, await read_fields(request, state.limits))
    check_response_body(body)
    service = await state.lease(request, body.model)
    constraint = await constraint_of_response(body)
    tools = await tools_of_response(service, body, is_constrained=constraint is not None)
    keep = kept_tokens(service, body, body.max_output_tokens)
    encode = partial(service.encode_chat, keep_last=keep)
    conversation = messages_of_input(body, service.template)
    variables = tools.variables(_variables(service, body))
    prompt = await encoded(request, encode, tools.messages(conversation), variables)
    params = generation_params(
        body,
        service.sampling_defaults,
        max_tokens=body.max_output_tokens,
        logprobs=None,
        constraint=tools.constraint or constraint,
    )
    generations = submit_all(service, [prompt], tools.params(params))
    # What is constrained is all content, even where the prompt begins a thought.
    thoughts = "none" if constraint or tools.must_call else body.reasoning_format
    reader = reader_of(service, prompt, thoughts, tools.reader())
    sampling = params[0].sampling
    answer = ResponseAnswer(service.model_name, body, sampling, generations[0], reader)
    if body.stream:
        feed = _feed(answer, Deltas(generations, state.metrics))
        return EventStream(commented(feed, state.limits.comment_seconds))
    (deltas,) = await collected(request, generations, state.metrics)
    return json_answer(answer.whole(deltas))


def _variables(service: GenerationService, body: ResponseBody) -> dict[str, Any]:
    effort = None if body.reasoning is None else body.reasoning.effort
    told = effort_variables(service, effort, "reasoning")
    return {**told, **(body.chat_template_kwargs or {})}


def _feed(answer: ResponseAnswer, deltas: Deltas) -> AnswerFeed:
    def of(index: int, delta: TextDelta) -> bytes:
        return _framed(answer.feed(delta))

    def failed(error: ApiError) -> bytes:
        return _framed([answer.fail(str(error), error.code)])

    return AnswerFeed(deltas, of, bytes, failed, first=_framed(answer.begin()))


def _framed(events: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(named_event(event["type"], event) for event in events)
