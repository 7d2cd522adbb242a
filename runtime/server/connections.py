"""What a connection may do before there is a request: uvicorn's HTTP/1.1, with two more bounds."""

import asyncio
import json
import sys
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from runtime.server.errors import error_body

HEADER_SECONDS = 10.0
"""Time for a request's first line and headers, from their first byte or the connection on."""

_REASONS = {
    400: b"Bad Request",
    408: b"Request Timeout",
    431: b"Request Header Fields Too Large",
}


class BoundedHttp(H11Protocol):
    """A head that is too long is answered with 431, one that trickles in with 408, and both
    connections are closed."""

    header_seconds = HEADER_SECONDS
    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
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
        self._refuse(431 if hint == 431 else 400, msg)

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
