"""From running generations to a response: collected into one object, or streamed as events."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from runtime.generation import Generation, TextDelta
from runtime.server.deltas import Deltas
from runtime.server.errors import ApiError
from runtime.server.leaving import unless_left
from runtime.server.metrics import Metrics
from runtime.server.sse import DONE, EventStream, event
from runtime.server.sse_quiet import commented
from runtime.server.state import ServerState

Chunk = dict[str, Any]
ToChunks = Callable[[int, TextDelta], Sequence[Chunk | bytes]]
"""Chunks, or events that are written already."""


async def collected(
    request: Request, generations: Sequence[Generation], metrics: Metrics
) -> list[list[TextDelta]]:
    """All deltas of each generation; everything is cancelled if the client leaves meanwhile."""
    return await unless_left(request, _gather(generations, metrics))


class AnswerFeed:
    """The bytes of a stream: `first`, then `of` each delta, then `end` or `failed`.

    A failure cannot be told by the status, which has gone out as 200: this is how clients learn
    of it.
    """

    def __init__(
        self,
        deltas: Deltas,
        of: Callable[[int, TextDelta], bytes],
        end: Callable[[], bytes],
        failed: Callable[[ApiError], bytes],
        first: bytes = b"",
    ) -> None:
        self.has_ended = False
        self.begin = deltas.on_news
        self.close = deltas.close
        self._deltas, self._of, self._end, self._failed = deltas, of, end, failed
        self._first = first

    def take(self) -> bytes:
        """See `Feed`; raises what is no ApiError."""
        deltas = self._deltas
        if self.has_ended:
            return b""
        parts = [self._of(index, delta) for index, delta in deltas.take()]
        if self._first:
            parts.insert(0, self._first)
            self._first = b""
        if deltas.has_ended:
            self.has_ended = True
            parts.append(self._last())
        return b"".join(parts)

    def _last(self) -> bytes:
        failure = self._deltas.failure
        if failure is None:
            return self._end()
        if isinstance(failure, ApiError):
            return self._failed(failure)
        raise failure


def streamed(
    generations: Sequence[Generation],
    state: ServerState,
    to_chunks: ToChunks,
    last_chunk: Callable[[], Chunk | None],
) -> Response:
    """An event stream of `to_chunks(choice, delta)`, then `last_chunk()` if there is one."""

    def of(index: int, delta: TextDelta) -> bytes:
        chunks = to_chunks(index, delta)
        return b"".join([one if isinstance(one, bytes) else event(one) for one in chunks])

    def end() -> bytes:
        last = last_chunk()
        return DONE if last is None else event(last) + DONE

    def failed(error: ApiError) -> bytes:
        return event(error.body()) + DONE

    feed = AnswerFeed(Deltas(generations, state.metrics), of, end, failed)
    return EventStream(commented(feed, state.limits.comment_seconds))


def json_answer(payload: Chunk) -> Response:
    return JSONResponse(payload)


async def _gather(generations: Sequence[Generation], metrics: Metrics) -> list[list[TextDelta]]:
    answers: list[list[TextDelta]] = [[] for _ in generations]
    deltas = Deltas(generations, metrics)
    ended = asyncio.Event()

    def take() -> None:
        for index, delta in deltas.take():
            answers[index].append(delta)
        if deltas.has_ended:
            ended.set()

    try:
        deltas.on_news(take)
        take()
        await ended.wait()
    finally:
        deltas.close()
    if deltas.failure is not None:
        raise deltas.failure
    return answers
