"""What passes between the front and a worker, and how it is framed.

A frame is its length, four bytes, big endian, then one message in MessagePack. Every message is
checked against its type when it is read; nothing is ever unpickled.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from quant.format.errors import ColdpressError
from runtime.engine.request import Request, TokenEvent
from runtime.engine.stats import EngineStats
from runtime.worker.spec import ModelSpec, WorkerFacts

MAX_FRAME_BYTES = 256 * 1024 * 1024
"""Far above any request: a body is bounded before it gets here."""
_LENGTH = struct.Struct(">I")


class Load(msgspec.Struct, tag="load", frozen=True):
    """The first message to a worker."""

    spec: ModelSpec


class Submit(msgspec.Struct, tag="submit", frozen=True):
    """`number` names the request in the flight record; each is used once in a worker's life.
    waited: seconds since the front accepted it, perhaps for another worker."""

    number: int
    request: Request
    waited: float = 0.0


class Abort(msgspec.Struct, tag="abort", frozen=True):
    request_id: str


class Loaded(msgspec.Struct, tag="loaded", frozen=True):
    facts: WorkerFacts


class LoadFailed(msgspec.Struct, tag="load_failed", frozen=True):
    """`kind` is the exception's name; `errno` and `filename` are those of an OSError."""

    kind: str
    message: str
    errno: int | None = None
    filename: str | None = None


class Turn(msgspec.Struct, tag="turn", frozen=True, omit_defaults=True):
    """All that one step gave, and now and then the counters after it; see `news`.

    tokens: pairs of a request's number and a token. In the place of the number 0 comes the next
    one of `events`, which says what two integers cannot.
    """

    tokens: list[int] = []
    events: list[TokenEvent] = []
    stats: EngineStats | None = None


class Refused(msgspec.Struct, tag="refused", frozen=True):
    """A request that the engine would not take after all."""

    request_id: str
    message: str


ToWorker = Load | Submit | Abort
ToFront = Loaded | LoadFailed | Turn | Refused


class ProtocolError(ColdpressError):
    """The other end of the socket says what no peer of ours says."""


def _path_to_text(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(type(value))


def _path_from_text(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise NotImplementedError(kind)


_encoder = msgspec.msgpack.Encoder(enc_hook=_path_to_text)
_commands: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(
    ToWorker, dec_hook=_path_from_text
)
_news: msgspec.msgpack.Decoder[ToFront] = msgspec.msgpack.Decoder(ToFront, dec_hook=_path_from_text)


def frame_of(message: ToWorker | ToFront) -> bytes:
    """The bytes of one message. ProtocolError for one that is too large to be read."""
    payload = _encoder.encode(message)
    if len(payload) > MAX_FRAME_BYTES:
        raise ProtocolError(f"a message of {len(payload)} bytes is longer than {MAX_FRAME_BYTES}")
    return _LENGTH.pack(len(payload)) + payload


def command_of(payload: bytes | bytearray) -> ToWorker:
    """The message to a worker in the payload of a frame; ProtocolError if it is none."""
    try:
        return _commands.decode(payload)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"the worker was sent what it does not understand: {error}") from error


def news_of(payload: bytes | bytearray) -> ToFront:
    """The message to the front in the payload of a frame; ProtocolError if it is none."""
    try:
        return _news.decode(payload)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"the worker said what nobody understands: {error}") from error


class FrameReader:
    """Cuts a stream of bytes into the payloads of its frames."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | memoryview) -> Iterator[bytearray]:
        """The payloads that are complete with `data`; ProtocolError for a length no frame has."""
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer)
            if length > MAX_FRAME_BYTES:
                raise ProtocolError(f"a frame says that it has {length} bytes")
            end = _LENGTH.size + length
            if len(self._buffer) < end:
                return
            payload = self._buffer[_LENGTH.size : end]
            del self._buffer[:end]
            yield payload
