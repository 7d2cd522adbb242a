"""POST /v1/embeddings."""

import asyncio
import base64
import json
from collections.abc import Sequence
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from runtime.engine.request import Pooling, RequestError, TokenEvent
from runtime.server.bodies import read_fields, validated
from runtime.server.encoding import encoded
from runtime.server.errors import generation_failed
from runtime.server.leaving import unless_left
from runtime.server.routing import App
from runtime.server.schemas import Prompts, prompts_of
from runtime.server.state import state_of
from runtime.server.wakeups import wakeups
from runtime.service import GenerationService

MAX_INPUTS = 2048
_AT_ONCE = 8
"""Inputs of one request that are in the engine's queue together."""

_TRUNCATE = "truncate_prompt_tokens"

Float32 = npt.NDArray[np.float32]


class EmbeddingBody(BaseModel):
    """POST /v1/embeddings.

    pooling: which hidden rows of the last layer make the embedding. normalize: to length 1, which
    is done unless it is false.
    """

    model_config = ConfigDict(strict=True, extra="ignore", protected_namespaces=())

    model: str | None = None
    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None
    pooling: Pooling | None = None
    normalize: bool | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: int | None = Field(None, ge=-1)
    """Only so many of an input's last tokens are used; -1 for what the context holds."""


def add_routes(app: App) -> None:
    app.add_api_route("/v1/embeddings", create_embeddings, methods=["POST"])


async def create_embeddings(request: Request) -> Response:
    """Embed one or several texts or lists of token ids."""
    state = state_of(request)
    body = validated(EmbeddingBody, await read_fields(request, state.limits))
    service = await state.lease(request, body.model)
    prompts = await encoded(request, _encoded, service, body)
    events = await unless_left(request, embedded(service, prompts, body.pooling or "last"))
    content = await run_in_threadpool(_answer, service.model_name, body, prompts, events)
    return Response(content, media_type="application/json")


def _encoded(service: GenerationService, body: EmbeddingBody) -> list[list[int]]:
    """Token ids of each input, in order."""
    asked = body.truncate_prompt_tokens
    if asked == 0:
        raise RequestError("truncate_prompt_tokens must be at least 1, or -1", _TRUNCATE)
    keep = service.max_positions if asked == -1 else asked
    encode = partial(
        service.encode, add_special_tokens=body.add_special_tokens is not False, keep_last=keep
    )
    prompts = prompts_of(body.input, MAX_INPUTS, "input")
    return [
        encode(prompt) if isinstance(prompt, str) else prompt[-keep:] if keep else prompt
        for prompt in prompts
    ]


async def embedded(
    service: GenerationService, prompts: Sequence[Sequence[int]], pooling: Pooling
) -> list[TokenEvent]:
    """The last event of each; ApiError once one of them fails."""
    places = asyncio.Semaphore(_AT_ONCE)

    async def one(tokens: Sequence[int]) -> TokenEvent:
        async with places:
            return await _embed_one(service, tokens, pooling)

    tasks = [asyncio.ensure_future(one(tokens)) for tokens in prompts]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()


async def _embed_one(
    service: GenerationService, tokens: Sequence[int], pooling: Pooling
) -> TokenEvent:
    end: asyncio.Future[TokenEvent] = asyncio.get_running_loop().create_future()
    wake = wakeups().call_soon

    def settle(event: TokenEvent) -> None:
        if not end.done():
            end.set_result(event)

    name = service.embed(tokens, pooling, lambda event: wake(partial(settle, event)))
    try:
        event = await end
    finally:
        service.engine.abort(name)
    if event.embedding is None:
        raise generation_failed(event.error)
    return event


def _answer(
    model: str,
    body: EmbeddingBody,
    prompts: Sequence[Sequence[int]],
    events: Sequence[TokenEvent],
) -> bytes:
    """The JSON, made input by input: encoding it as a whole would hold up every other thread."""
    data = [
        json.dumps({"object": "embedding", "index": index, "embedding": _row(body, event)})
        for index, event in enumerate(events)
    ]
    count = sum(map(len, prompts))
    usage = {"prompt_tokens": count, "total_tokens": count}
    rest = json.dumps({"model": model, "usage": usage})
    return f'{{"object": "list", "data": [{", ".join(data)}], {rest[1:]}'.encode()


def _row(body: EmbeddingBody, event: TokenEvent) -> str | list[float]:
    assert event.embedding is not None
    row = np.frombuffer(event.embedding, np.float32)
    if body.normalize is not False:
        row = unit(row)
    if body.encoding_format == "base64":
        return base64.b64encode(row.astype("<f4").tobytes()).decode()
    # Nine digits tell every float32 apart.
    return [float(f"{value:.9g}") for value in row.tolist()]


def unit(row: Float32) -> Float32:
    """The row at length 1; one of zeros as it is."""
    length = np.sqrt(np.square(row, dtype=np.float64).sum())
    return (row / length).astype(np.float32) if length > 0 else row
