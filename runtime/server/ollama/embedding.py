"""POST /api/embed, and /api/embeddings of older clients: the last hidden row of each input."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from starlette.requests import Request

from runtime.engine.request import RequestError
from runtime.server.bodies import read_fields, validated
from runtime.server.embeddings import MAX_INPUTS, Float32, embedded, unit
from runtime.server.encoding import encoded
from runtime.server.leaving import unless_left
from runtime.server.ollama.catalogue import known_name
from runtime.server.ollama.schemas import EmbedBody, OldEmbedBody
from runtime.server.schemas import prompts_of
from runtime.server.state import state_of
from runtime.service import GenerationService


async def embed(request: Request) -> dict[str, Any]:
    """Embeddings of length 1, cut to `dimensions` before that if asked for."""
    arrived, state = time.monotonic(), state_of(request)
    body = validated(EmbedBody, await read_fields(request, state.limits))
    service = await state.lease(request, known_name(state, body.model))
    loaded = time.monotonic()
    texts = prompts_of(body.input, MAX_INPUTS, "input")
    prompts = await encoded(request, _encoded, service, texts, bool(body.truncate))
    rows = await _rows(request, service, prompts)
    return {
        "model": service.model_name,
        "embeddings": [_cut(row, body.dimensions).tolist() for row in rows],
        "total_duration": round(1e9 * (time.monotonic() - arrived)),
        "load_duration": round(1e9 * (loaded - arrived)),
        "prompt_eval_count": sum(map(len, prompts)),
    }


async def embed_one(request: Request) -> dict[str, Any]:
    """One embedding, as long as the model made it."""
    state = state_of(request)
    body = validated(OldEmbedBody, await read_fields(request, state.limits))
    service = await state.lease(request, known_name(state, body.model))
    prompts = await encoded(request, _encoded, service, [body.prompt], False)
    (row,) = await _rows(request, service, prompts)
    return {"embedding": row.tolist()}


async def _rows(
    request: Request, service: GenerationService, prompts: Sequence[Sequence[int]]
) -> list[Float32]:
    events = await unless_left(request, embedded(service, prompts, "last"))
    return [np.frombuffer(event.embedding or b"", np.float32) for event in events]


def _encoded(
    service: GenerationService, texts: Sequence[str | list[int]], truncate: bool
) -> list[list[int]]:
    if not all(isinstance(text, str) for text in texts):
        raise RequestError("input must be a string or a list of strings", "input")
    most = service.max_positions - 1
    if not truncate:
        return [service.encode(str(text)) for text in texts]
    return [service.tokenizer.encode(str(text))[:most] for text in texts]


def _cut(row: Float32, dimensions: int | None) -> Float32:
    if dimensions is not None and dimensions > len(row):
        raise RequestError(
            f"dimensions is {dimensions}, but the model's embeddings have {len(row)}", "dimensions"
        )
    return unit(row[:dimensions])
