"""From running generations to a response: collected into one object, or streamed as events."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from runtime.generation import Generation, TextDelta
from runtime.server.errors import ApiError, generation_failed, timed_out
from runtime.server.metrics import Metrics, Stopwatch
from runtime.server.sse import DONE, EventStream, event
from runtime.server.state import cancel_all
from runtime.server.wakeups import wakeups

Chunk = dict[str, Any]
Result = TypeVar("Result")
ToChunks = Callable[[int, TextDelta], Sequence[Chunk | bytes]]
"""Chunks, or events that are written already."""

_FAILURES = ("error", "abort", "timeout")
_CLIENT_CLOSED = 499


async def deltas_of(
    generations: Sequence[Generation], metrics: Metrics
) -> AsyncIterator[list[tuple[int, TextDelta]]]:
    """What has come since the last time, from all generations, until each has ended.

    Raises ApiError once one of them fails, after what came before.
    """
    news = asyncio.Event()
    wake = partial(wakeups().call_soon, news.set)
    watches = [Stopwatch(metrics, generation) for generation in generations]
    for generation in generations:
        generation.on_news(wake)
    try:
        live = sum(generation.finish_reason is None for generation in generations)
        while live:
            await news.wait()
            news.clear()
            ready: list[tuple[int, TextDelta]] = []
            failed: TextDelta | None = None
            for index, generation in enumerate(generations):
                for delta in generation.poll():
                    watches[index].token(delta)
                    live -= delta.finish_reason is not None
                    if delta.finish_reason in _FAILURES:
                        failed = failed or delta
                    else:
                        ready.append((index, delta))
            yield ready
            if failed is not None:
                timeout = failed.finish_reason == "timeout"
                raise (timed_out if timeout else generation_failed)(failed.error)
    finally:
        for watch in watches:
            watch.close()


async def collected(
    request: Request, generations: Sequence[Generation], metrics: Metrics
) -> list[list[TextDelta]]:
    """All deltas of each generation; everything is cancelled if the client leaves meanwhile."""
    try:
        return await unless_left(request, _gather(generations, metrics))
    finally:
        cancel_all(generations)


async def unless_left(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
    """What `work` gives; it is cancelled, and ApiError raised, if the client leaves meanwhile."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ApiError(_CLIENT_CLOSED, "the client closed the connection")
        return working.result()
    finally:
        working.cancel()
        leaving.cancel()


def streamed(
    generations: Sequence[Generation],
    metrics: Metrics,
    to_chunks: ToChunks,
    last_chunk: Callable[[], Chunk | None],
) -> Response:
    """An event stream of `to_chunks(choice, delta)`, then `last_chunk()` if there is one."""
    events = _events(generations, metrics, to_chunks, last_chunk)
    return EventStream(events, on_close=partial(cancel_all, generations))


def json_answer(payload: Chunk) -> Response:
    return JSONResponse(payload)


async def _gather(generations: Sequence[Generation], metrics: Metrics) -> list[list[TextDelta]]:
    answers: list[list[TextDelta]] = [[] for _ in generations]
    async for ready in deltas_of(generations, metrics):
        for index, delta in ready:
            answers[index].append(delta)
    return answers


async def _events(
    generations: Sequence[Generation],
    metrics: Metrics,
    to_chunks: ToChunks,
    last_chunk: Callable[[], Chunk | None],
) -> AsyncIterator[bytes]:
    try:
        async for ready in deltas_of(generations, metrics):
            events = [
                chunk if isinstance(chunk, bytes) else event(chunk)
                for index, delta in ready
                for chunk in to_chunks(index, delta)
            ]
            if events:
                yield b"".join(events)
        last = last_chunk()
        yield DONE if last is None else event(last) + DONE
    except ApiError as error:
        # The status line has gone out as 200; this is how clients learn of it now.
        yield event(error.body()) + DONE


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
