"""Server-sent events: framing, and a response that notices when its client is gone."""

import asyncio
import json
from collections.abc import Callable
from typing import Any, Protocol

import anyio
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from runtime.server.leaving import until_left

DONE = b"data: [DONE]\n\n"


def event(payload: dict[str, Any]) -> bytes:
    """One event. Escaped to ASCII, since clients split lines at U+2028, U+2029 and U+0085 too."""
    text = json.dumps(payload, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return b"data: " + text.encode() + b"\n\n"


def named_event(name: str, payload: dict[str, Any]) -> bytes:
    """One event with a line that says what it is."""
    return b"event: " + name.encode() + b"\n" + event(payload)


BODY_WRITER = "coldpress.body_writer"
"""A key of the message that starts a response: a stream asks there for a BodyWriter, and a server
that has one puts it there once the head is out."""


class BodyWriter(Protocol):
    """A connection that takes a body in pieces at once."""

    def write(self, data: bytes) -> bool:
        """Whether there is room for more; if not, wait for `drain`."""
        ...

    async def drain(self) -> None: ...


class Feed(Protocol):
    """Where the bytes of a stream come from; on the event loop's thread alone."""

    has_ended: bool
    """Whether `take` has given all."""

    def begin(self, notify: Callable[[], None]) -> None:
        """From now on `notify` is called whenever `take` may have something to give."""
        ...

    def take(self) -> bytes:
        """What there is by now, perhaps nothing."""
        ...

    def close(self) -> None:
        """Called once, at the end or when the client has left."""
        ...


class EventStream(Response):
    """Sends what `feed` gives, as it comes."""

    media_type = "text/event-stream"

    def __init__(self, feed: Feed) -> None:
        self.status_code = 200
        self.background = None
        self.init_headers({"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        self._feed = feed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_cancel_once_left, receive, tasks.cancel_scope)
                await self._send_all(send)
                tasks.cancel_scope.cancel()
        finally:
            self._feed.close()

    async def _send_all(self, send: Send) -> None:
        start: Message = {
            "type": "http.response.start",
            "status": 200,
            "headers": self.raw_headers,
            BODY_WRITER: None,
        }
        await send(start)
        writer = start[BODY_WRITER]
        if writer is None:
            await _relay(self._feed, send)
        else:
            await _Pump(self._feed, writer).run()
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _cancel_once_left(receive: Receive, scope: anyio.CancelScope) -> None:
    await until_left(receive)
    scope.cancel()


class _Pump:
    """Writes what comes when it comes: no task is woken for it, unless the client is slow."""

    def __init__(self, feed: Feed, writer: BodyWriter) -> None:
        self._feed = feed
        self._writer = writer
        self._has_room = True
        self._failure: Exception | None = None
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        """Returns once all is written; raises what the feed raises."""
        self._feed.begin(self._pump)
        try:
            self._pump()
            while self._failure is None and not self._feed.has_ended:
                await self._stopped.wait()
                self._stopped.clear()
                await self._writer.drain()
                self._has_room = self._failure is None
                self._pump()
        finally:
            # What comes after this belongs to another response.
            self._has_room = False
        if self._failure is not None:
            raise self._failure

    def _pump(self) -> None:
        if not self._has_room:
            return
        try:
            data = self._feed.take()
        except Exception as failure:
            self._failure, self._has_room = failure, False
            self._stopped.set()
            return
        if data:
            self._has_room = self._writer.write(data)
        if self._feed.has_ended or not self._has_room:
            self._stopped.set()


async def _relay(feed: Feed, send: Send) -> None:
    """The same by ASGI's own means."""
    news = asyncio.Event()
    feed.begin(news.set)
    news.set()
    while not feed.has_ended:
        await news.wait()
        news.clear()
        data = feed.take()
        if data:
            await send({"type": "http.response.body", "body": data, "more_body": True})
