"""POST /v1/completions."""

import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from fastapi import FastAPI, Request, Response
from starlette.concurrency import run_in_threadpool

from runtime.engine.request import RequestError
from runtime.generation import Generation, TextDelta
from runtime.server.answers import Chunk, collected, json_answer, streamed
from runtime.server.bodies import read_fields, validated
from runtime.server.logprobs import CompletionLogprobs
from runtime.server.schemas import CompletionBody, prompts_of
from runtime.server.state import ServerState, generation_params, state_of, submit_all, usage_of
from runtime.service import GenerationService

_DEFAULT_MAX_TOKENS = 16


def add_routes(app: FastAPI) -> None:
    app.add_api_route("/v1/completions", create_completion, methods=["POST"])


async def create_completion(request: Request) -> Response:
    """Continue one or several prompts, whole or as a stream."""
    state = state_of(request)
    body = validated(CompletionBody, await read_fields(request, state.limits))
    service = await state.lease(request, body.model)
    prompts = await run_in_threadpool(_encoded, state, service, body)
    params = generation_params(
        body,
        service.sampling_defaults,
        max_tokens=body.max_tokens,
        logprobs=body.logprobs,
    )
    generations = submit_all(service, prompts, params, _DEFAULT_MAX_TOKENS)
    answer = _CompletionAnswer(service, body, generations)
    if body.stream:
        return streamed(generations, state.metrics, answer.chunks, answer.usage_chunk)
    return json_answer(answer.whole(await collected(request, generations, state.metrics)))


def _encoded(
    state: ServerState, service: GenerationService, body: CompletionBody
) -> list[list[int]]:
    """Token ids of each prompt, in order; RequestError if there are too many of them."""
    limit = state.limits.max_sequences
    prompts = prompts_of(body.prompt, limit)
    if len(prompts) * (body.n or 1) > limit:
        raise RequestError(
            f"{len(prompts)} prompts with n = {body.n} make {len(prompts) * (body.n or 1)} "
            f"answers; at most {limit} are allowed",
            "n",
        )
    add_special_tokens = body.add_special_tokens is not False
    return [
        service.encode(prompt, add_special_tokens=add_special_tokens)
        if isinstance(prompt, str)
        else prompt
        for prompt in prompts
    ]


class _CompletionAnswer:
    """The objects of one answer, which share an id. Choices are counted prompt by prompt."""

    def __init__(
        self, service: GenerationService, body: CompletionBody, generations: Sequence[Generation]
    ) -> None:
        self._body = body
        self._generations = generations
        self._logprobs = [CompletionLogprobs(service.tokenizer) for _ in generations]
        self._head = {
            "id": f"cmpl-{uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": service.model_name,
        }

    def whole(self, answers: Sequence[Sequence[TextDelta]]) -> Chunk:
        choices = [
            self._choice(index, "".join(delta.text for delta in deltas), deltas)
            for index, deltas in enumerate(answers)
        ]
        return {**self._head, "choices": choices, "usage": self._usage()}

    def chunks(self, index: int, delta: TextDelta) -> list[Chunk]:
        chunk = {**self._head, "choices": [self._choice(index, delta.text, [delta])]}
        if self._body.wants_usage:
            chunk["usage"] = self._usage() if self._body.wants_usage_always else None
        return [chunk]

    def usage_chunk(self) -> Chunk | None:
        if not self._body.wants_usage:
            return None
        return {**self._head, "choices": [], "usage": self._usage()}

    def _choice(self, index: int, text: str, deltas: Sequence[TextDelta]) -> dict[str, Any]:
        wants_logprobs = self._body.logprobs is not None
        return {
            "index": index,
            "text": text,
            "logprobs": self._logprobs[index].of(deltas) if wants_logprobs else None,
            "finish_reason": deltas[-1].finish_reason,
        }

    def _usage(self) -> dict[str, Any]:
        return usage_of(self._generations, self._body.n or 1)
