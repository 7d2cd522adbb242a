"""POST /v1/responses: OpenAI's newer interface, without anything that is kept."""

from collections.abc import AsyncIterator, Iterable
from functools import partial
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.concurrency import run_in_threadpool

from runtime.generation import Generation
from runtime.server.answers import collected, deltas_of, json_answer
from runtime.server.bodies import read_fields, validated
from runtime.server.errors import ApiError
from runtime.server.message_reader import reader_of
from runtime.server.metrics import Metrics
from runtime.server.responses_answer import ResponseAnswer
from runtime.server.responses_schema import (
    ResponseBody,
    check_response_body,
    constraint_of_response,
    messages_of_input,
)
from runtime.server.sse import EventStream, named_event
from runtime.server.state import (
    cancel_all,
    generation_params,
    kept_tokens,
    state_of,
    submit_all,
)


def add_routes(app: FastAPI) -> None:
    app.add_api_route("/v1/responses", create_response, methods=["POST"])


async def create_response(request: Request) -> Response:
    """Answer a conversation, whole or as a stream of typed events."""
    state = state_of(request)
    body = validated(ResponseBody, await read_fields(request, state.limits))
    check_response_body(body)
    service = await state.lease(request, body.model)
    constraint = await constraint_of_response(body)
    keep = kept_tokens(service, body, body.max_output_tokens)
    encode = partial(service.encode_chat, keep_last=keep)
    prompt = await run_in_threadpool(encode, messages_of_input(body), _variables(body))
    params = generation_params(
        body,
        service.sampling_defaults,
        max_tokens=body.max_output_tokens,
        logprobs=None,
        constraint=constraint,
    )
    generations = submit_all(service, [prompt], params)
    # What is constrained is all content, even where the prompt begins a thought.
    thoughts = "none" if constraint else body.reasoning_format
    reader = reader_of(service, prompt, thoughts)
    sampling = params[0].sampling
    answer = ResponseAnswer(service.model_name, body, sampling, generations[0], reader)
    if body.stream:
        events = _events(answer, generations, state.metrics)
        return EventStream(events, on_close=partial(cancel_all, generations))
    (deltas,) = await collected(request, generations, state.metrics)
    return json_answer(answer.whole(deltas))


def _variables(body: ResponseBody) -> dict[str, Any]:
    effort = None if body.reasoning is None else body.reasoning.effort
    given = {} if effort is None else {"reasoning_effort": effort}
    return {**given, **(body.chat_template_kwargs or {})}


async def _events(
    answer: ResponseAnswer, generations: list[Generation], metrics: Metrics
) -> AsyncIterator[bytes]:
    yield _framed(answer.begin())
    try:
        async for ready in deltas_of(generations, metrics):
            yield _framed(event for _, delta in ready for event in answer.feed(delta))
    except ApiError as error:
        # The status line has gone out as 200; this is how clients learn of it now.
        yield _framed([answer.fail(str(error), error.code)])


def _framed(events: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(named_event(event["type"], event) for event in events)
