"""Streams of JSON objects whose last one tells the end: KServe's events and Ollama's lines."""

import json
from collections.abc import AsyncIterator, Callable, Sequence
from functools import partial
from typing import Any

from fastapi import Response

from runtime.generation import Generation, TextDelta
from runtime.server.answers import deltas_of
from runtime.server.errors import ApiError
from runtime.server.metrics import Metrics
from runtime.server.sse import EventStream, event
from runtime.server.state import cancel_all

Payload = dict[str, Any]
ToPayload = Callable[[TextDelta], Payload | None]


class LineStream(EventStream):
    media_type = "application/x-ndjson"


def line(payload: Payload) -> bytes:
    """One object on one line; ASCII, so that no character in it can end the line."""
    return json.dumps(payload, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def event_stream(generation: Generation, metrics: Metrics, to_payload: ToPayload) -> Response:
    """Server-sent events of what `to_payload` gives for each delta, without a closing mark."""
    return EventStream(
        _framed([generation], metrics, to_payload, event), partial(cancel_all, [generation])
    )


def line_stream(generation: Generation, metrics: Metrics, to_payload: ToPayload) -> Response:
    """The same, newline-delimited."""
    return LineStream(
        _framed([generation], metrics, to_payload, line), partial(cancel_all, [generation])
    )


async def _framed(
    generations: Sequence[Generation],
    metrics: Metrics,
    to_payload: ToPayload,
    frame: Callable[[Payload], bytes],
) -> AsyncIterator[bytes]:
    try:
        async for ready in deltas_of(generations, metrics):
            payloads = [to_payload(delta) for _, delta in ready]
            data = b"".join(frame(payload) for payload in payloads if payload is not None)
            if data:
                yield data
    except ApiError as error:
        # The status line has gone out as 200; this is how clients learn of it now.
        yield frame({"error": str(error)})
