"""What a connection may do before there is a request: uvicorn's HTTP/1.1, with more bounds."""

import asyncio
import json
import sys
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from runtime.server.body_writer import offering_a_writer
from runtime.server.errors import error_body

HEADER_SECONDS = 10.0
"""Time for a request's first line and headers, from their first byte or the connection on."""

MAX_HEADER_BYTES = 32 * 1024

FREE_PIECES = 4096
"""Pieces, of chunks or of what came at once, that a body may come in however small they are."""
LEAST_PIECE_BYTES = 64
"""Of the further ones on average. A piece costs much the same whatever its size."""

_REASONS = {
    400: b"Bad Request",
    408: b"Request Timeout",
    413: b"Content Too Large",
    431: b"Request Header Fields Too Large",
}


class CountedConnection(h11.Connection):
    """h11's, which gives a body up that comes in too many too small pieces."""

    _pieces = 0
    _bytes = 0

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._pieces = self._bytes = 0
        elif isinstance(event, h11.Data):
            self._pieces += 1
            self._bytes += len(event.data)
            if self._pieces > FREE_PIECES + self._bytes // LEAST_PIECE_BYTES:
                raise h11.RemoteProtocolError("the body is cut too small", error_status_hint=413)
        return event


class BoundedHttp(H11Protocol):
    """A head that is too long is answered with 431, one that trickles in with 408, a body in too
    many small pieces with 413, and the connections are closed."""

    header_seconds = HEADER_SECONDS
    _timer: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.conn = CountedConnection(h11.SERVER, MAX_HEADER_BYTES)

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.app = offering_a_writer(self.app, self.transport, self.flow)
        self._watch_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watching()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        # From here to the next first byte, uvicorn's time for idle connections runs.
        self._stop_watching()

    def send_400_response(self, msg: str) -> None:
        error = sys.exc_info()[1]
        hint = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        if hint == 413 and self.cycle.response_started:
            # There is an answer already, which did not wait for the body.
            self._stop_watching()
            self.transport.close()
            return
        self._refuse(hint if hint in _REASONS else 400, str(error) if hint == 413 else msg)

    def _watch_head(self) -> None:
        if self.transport.is_closing() or self.conn.their_state is not h11.IDLE:
            self._stop_watching()
        elif self._timer is None:
            self._timer = self.loop.call_later(self.header_seconds, self._give_up)

    def _stop_watching(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if not self.transport.is_closing():
            self._refuse(408, f"no request came within {self.header_seconds:g} s")

    def _refuse(self, status: int, message: str) -> None:
        """Past h11, which sends no answer to what it could not read."""
        self._stop_watching()
        body = json.dumps(error_body(status, message)).encode()
        head = b"HTTP/1.1 %d %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n"
        self.transport.write(head % (status, _REASONS[status], len(body)))
        self.transport.write(b"Connection: close\r\n\r\n" + body)
        self.transport.close()
