"""Streams of JSON objects whose last one tells the end: KServe's events and Ollama's lines."""

import json
from collections.abc import Callable
from typing import Any

from starlette.responses import Response

from runtime.generation import Generation, TextDelta
from runtime.server.answers import AnswerFeed
from runtime.server.deltas import Deltas
from runtime.server.metrics import Metrics
from runtime.server.sse import EventStream, event
from runtime.server.sse_quiet import commented
from runtime.server.state import ServerState

Payload = dict[str, Any]
ToPayload = Callable[[TextDelta], Payload | None]


class LineStream(EventStream):
    media_type = "application/x-ndjson"


def line(payload: Payload) -> bytes:
    """One object on one line; ASCII, so that no character in it can end the line."""
    return json.dumps(payload, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def event_stream(generation: Generation, state: ServerState, to_payload: ToPayload) -> Response:
    """Server-sent events of what `to_payload` gives for each delta, without a closing mark."""
    feed = _feed(generation, state.metrics, to_payload, event)
    return EventStream(commented(feed, state.limits.comment_seconds))


def line_stream(generation: Generation, metrics: Metrics, to_payload: ToPayload) -> Response:
    """The same, newline-delimited."""
    return LineStream(_feed(generation, metrics, to_payload, line))


def _feed(
    generation: Generation,
    metrics: Metrics,
    to_payload: ToPayload,
    frame: Callable[[Payload], bytes],
) -> AnswerFeed:
    def of(index: int, delta: TextDelta) -> bytes:
        payload = to_payload(delta)
        return b"" if payload is None else frame(payload)

    return AnswerFeed(
        Deltas([generation], metrics), of, bytes, lambda error: frame({"error": str(error)})
    )
