"""Frames on the socket between a pool and its child: a length, then JSON. Data only, no objects."""

import json
import socket
import struct
import time
from typing import Any

_LENGTH = struct.Struct("<I")
MAX_FRAME_BYTES = 128 * 1024 * 1024


class Refused(ValueError):  # noqa: N818
    """A task's own no, told to the caller. `kind` is a machine-readable word."""

    def __init__(self, message: str, kind: str = "refused") -> None:
        super().__init__(message)
        self.kind = kind


def send(link: socket.socket, value: Any, deadline: float | None = None) -> None:
    """Raises TimeoutError past `deadline` (monotonic seconds), OSError where nobody listens."""
    data = json.dumps(value).encode()
    if len(data) > MAX_FRAME_BYTES:
        raise Refused(f"{len(data)} bytes are more than one message holds", "too_large")
    _hurry(link, deadline)
    link.sendall(_LENGTH.pack(len(data)) + data)


def receive(link: socket.socket, deadline: float | None = None) -> Any:
    """The next frame. Raises TimeoutError past `deadline`, EOFError at the end."""
    (length,) = _LENGTH.unpack(_exactly(link, _LENGTH.size, deadline))
    if length > MAX_FRAME_BYTES:
        raise EOFError("the other side does not keep to the protocol")
    return json.loads(_exactly(link, length, deadline))


def _exactly(link: socket.socket, size: int, deadline: float | None) -> bytes:
    data = bytearray()
    while len(data) < size:
        _hurry(link, deadline)
        piece = link.recv(min(size - len(data), 1 << 20))
        if not piece:
            raise EOFError("the other side is gone")
        data += piece
    return bytes(data)


def _hurry(link: socket.socket, deadline: float | None) -> None:
    if deadline is None:
        return
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    link.settimeout(left)
