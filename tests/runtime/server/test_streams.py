"""How the bytes of a stream get onto a connection."""

import asyncio
import http.client
import json
import socket
from collections.abc import Callable
from typing import Any

import pytest
from starlette.types import Message

from runtime.server.sse import BODY_WRITER, EventStream
from tests.runtime.server.harness import MODEL, Running
from tests.runtime.server.test_sse import payloads

BODY = {"model": MODEL, "prompt": "Hi", "stream": True, "max_tokens": 40, "temperature": 0}


class ScriptedFeed:
    """Gives the pieces one by one; an exception among them is raised."""

    def __init__(self, pieces: list[bytes | Exception]) -> None:
        self.pieces = pieces
        self.has_ended = False
        self.num_closed = 0
        self.notify: Callable[[], None] = lambda: None

    def begin(self, notify: Callable[[], None]) -> None:
        self.notify = notify

    def take(self) -> bytes:
        piece = self.pieces.pop(0) if self.pieces else b""
        self.has_ended = not self.pieces
        if isinstance(piece, Exception):
            raise piece
        return piece

    def close(self) -> None:
        self.num_closed += 1


class NarrowWriter:
    """Has room for one piece at a time."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.room = asyncio.Event()
        self.room.set()

    def write(self, data: bytes) -> bool:
        assert self.room.is_set(), "nothing is to be written before there is room"
        self.written.append(data)
        self.room.clear()
        return False

    async def drain(self) -> None:
        await self.room.wait()


async def respond(feed: ScriptedFeed, writer: NarrowWriter | None) -> list[Message]:
    """What EventStream sends to a server that offers `writer` while all news comes."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)
        if BODY_WRITER in message and writer is not None:
            message[BODY_WRITER] = writer

    async def receive() -> Message:
        message: Message = await asyncio.get_running_loop().create_future()
        return message

    answering = asyncio.ensure_future(EventStream(feed)({"type": "http"}, receive, send))
    while not answering.done():
        for _ in range(4):
            await asyncio.sleep(0)
            feed.notify()
        if writer is not None:
            writer.room.set()
    await answering
    return sent


@pytest.mark.parametrize("has_writer", [True, False])
def test_all_that_comes_is_sent_in_order_and_the_feed_closed_once(has_writer: bool) -> None:
    async def scenario() -> None:
        feed = ScriptedFeed([b"a", b"", b"bc", b"", b"", b"d"])
        writer = NarrowWriter() if has_writer else None
        start, *body = await respond(feed, writer)
        assert start["status"] == 200
        assert body[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
        pieces = [message["body"] for message in body[:-1]]
        assert (pieces if writer is None else writer.written) == [b"a", b"bc", b"d"]
        assert not (writer and pieces) and feed.num_closed == 1

    asyncio.run(asyncio.wait_for(scenario(), 60))


@pytest.mark.parametrize("has_writer", [True, False])
def test_a_feed_that_fails_fails_the_response(has_writer: bool) -> None:
    async def scenario() -> None:
        feed = ScriptedFeed([b"a", KeyError("bug")])
        with pytest.raises(BaseException) as caught:
            await respond(feed, NarrowWriter() if has_writer else None)
        assert "bug" in repr(caught.value) and feed.num_closed == 1

    asyncio.run(asyncio.wait_for(scenario(), 60))


def text_of(events: bytes) -> str:
    return "".join(chunk["choices"][0]["text"] for chunk in payloads(events))


def exchange(server: Running, version: bytes, **more: Any) -> tuple[bytes, bytes]:
    """Head and body of a stream, as they are on the wire."""
    data = json.dumps({**BODY, **more}).encode()
    head = b"POST /v1/completions HTTP/%b\r\nHost: x\r\nConnection: close\r\nContent-Length: %d"
    with socket.create_connection((server.server.host, server.server.port), 60) as client:
        client.sendall(head % (version, len(data)) + b"\r\n\r\n" + data)
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    start, _, body = answer.partition(b"\r\n\r\n")
    return start.lower(), body


def unchunked(body: bytes) -> list[bytes]:
    """RFC 9112 7.1, without extensions and trailers."""
    pieces = []
    while True:
        size, _, rest = body.partition(b"\r\n")
        length = int(size, 16)
        pieces.append(rest[:length])
        assert rest[length : length + 2] == b"\r\n"
        body = rest[length + 2 :]
        if length == 0:
            assert body == b"" and pieces.pop() == b""
            return pieces


def test_a_stream_comes_in_whole_chunks_of_whole_events(server: Running) -> None:
    head, body = exchange(server, b"1.1")
    assert b"transfer-encoding: chunked" in head
    pieces = unchunked(body)
    assert all(piece.startswith(b"data: ") and piece.endswith(b"\n\n") for piece in pieces)
    assert len(payloads(b"".join(pieces))) == 40


def test_an_old_client_gets_no_chunks(server: Running) -> None:
    head, body = exchange(server, b"1.0")
    assert b"transfer-encoding" not in head
    assert text_of(body) == text_of(b"".join(unchunked(exchange(server, b"1.1")[1])))


def test_a_connection_serves_on_after_a_stream(server: Running) -> None:
    connection = http.client.HTTPConnection(server.server.host, server.server.port, timeout=60)
    texts = []
    for _ in range(3):
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/completions", json.dumps(BODY), headers)
        texts.append(text_of(connection.getresponse().read()))
        connection.request("GET", "/health")
        with connection.getresponse() as health:
            assert health.status == 200 and health.read() == b""
    connection.close()
    assert texts[0] and len(set(texts)) == 1
