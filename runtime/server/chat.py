"""POST /v1/chat/completions."""

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
from runtime.server.logprobs import chat_logprobs
from runtime.server.schemas import ChatBody, messages_of
from runtime.server.state import generation_params, state_of, submit_all, usage_of
from runtime.service import GenerationService


def add_routes(app: FastAPI) -> None:
    app.add_api_route("/v1/chat/completions", create_chat, methods=["POST"])


async def create_chat(request: Request) -> Response:
    """Answer a conversation, whole or as a stream."""
    state = state_of(request)
    body = validated(ChatBody, await read_fields(request, state.limits))
    service = await state.lease(request, body.model)
    if body.top_logprobs is not None and not body.logprobs:
        raise RequestError("top_logprobs needs logprobs to be true", "top_logprobs")
    prompt = await run_in_threadpool(
        service.encode_chat, messages_of(body), body.chat_template_kwargs
    )
    params = generation_params(
        body,
        service.sampling_defaults,
        max_tokens=body.max_completion_tokens or body.max_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )
    generations = submit_all(service, [prompt], params)
    answer = _ChatAnswer(service, body, generations)
    if body.stream:
        return streamed(generations, state.metrics, answer.chunks, answer.usage_chunk)
    return json_answer(answer.whole(await collected(request, generations, state.metrics)))


class _ChatAnswer:
    """The objects of one answer, which share an id."""

    def __init__(
        self, service: GenerationService, body: ChatBody, generations: Sequence[Generation]
    ) -> None:
        self._service = service
        self._body = body
        self._generations = generations
        self._introduced: set[int] = set()
        self._head = {
            "id": f"chatcmpl-{uuid4().hex}",
            "object": "chat.completion.chunk" if body.stream else "chat.completion",
            "created": int(time.time()),
            "model": service.model_name,
        }

    def whole(self, answers: Sequence[Sequence[TextDelta]]) -> Chunk:
        choices = [
            {
                "index": index,
                "message": {
                    "role": "assistant",
                    "content": "".join(delta.text for delta in deltas),
                    "refusal": None,
                },
                "logprobs": self._logprobs(deltas),
                "finish_reason": deltas[-1].finish_reason,
            }
            for index, deltas in enumerate(answers)
        ]
        return {**self._head, "choices": choices, "usage": self._usage()}

    def chunks(self, index: int, delta: TextDelta) -> list[Chunk]:
        """The chunk of one token, after the one that opens the choice."""
        opening = []
        if index not in self._introduced:
            self._introduced.add(index)
            opening.append(self._chunk(index, {"role": "assistant", "content": ""}))
        is_bare_end = delta.token_id is None and not delta.text
        content = {} if is_bare_end else {"content": delta.text}
        logprobs = self._logprobs([delta])
        return [*opening, self._chunk(index, content, logprobs, delta.finish_reason)]

    def usage_chunk(self) -> Chunk | None:
        if not self._body.wants_usage:
            return None
        return {**self._head, "choices": [], "usage": self._usage()}

    def _chunk(
        self,
        index: int,
        delta: dict[str, str],
        logprobs: dict[str, Any] | None = None,
        finish_reason: str | None = None,
    ) -> Chunk:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        chunk: Chunk = {**self._head, "choices": [choice]}
        if self._body.wants_usage:
            chunk["usage"] = self._usage() if self._body.wants_usage_always else None
        return chunk

    def _usage(self) -> dict[str, Any]:
        return usage_of(self._generations, self._body.n or 1)

    def _logprobs(self, deltas: Sequence[TextDelta]) -> dict[str, Any] | None:
        return chat_logprobs(self._service.tokenizer, deltas) if self._body.logprobs else None
