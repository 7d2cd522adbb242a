"""Protobuf's wire format, walked over a mapped file: nothing is loaded but what is asked for.

Source: "Encoding", protobuf.dev. Every length is checked against what holds it, and the number of
fields is bounded, so that a hostile file costs neither memory nor time.
"""

import mmap
import struct
from collections.abc import Iterator
from pathlib import Path

from quant.format.errors import FileFormatError, InputError

MAX_PROTOBUF_BYTES = (2 << 30) - 1
"""What protobuf itself can read."""
MAX_FIELDS = 3_000_000
MAX_TEXT_BYTES = 1 << 16
MAX_VARINT_BYTES = 10
VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5

Field = tuple[int, int, int, int]
"""(number, kind, start, end): of BYTES and fixed fields the span of the value; of VARINT, `start`
is the value itself."""


class WireFile:
    """A mapped file. Raises FileFormatError for what is no protobuf, InputError for no file."""

    def __init__(self, path: Path, max_fields: int | None = None) -> None:
        self.path = path
        self._max_fields = MAX_FIELDS if max_fields is None else max_fields
        try:
            size = path.stat().st_size
            if size > MAX_PROTOBUF_BYTES:
                raise FileFormatError(
                    path, "is larger than a protobuf can be (2 GB); keep weights in external data"
                )
            if size == 0:
                raise FileFormatError(path, "is empty")
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        self.size = size
        self._fields_left = self._max_fields

    def close(self) -> None:
        self._data.close()

    def fields(self, start: int, end: int) -> Iterator[Field]:
        """Of the message in a span, in their order."""
        at = start
        while at < end:
            self._fields_left -= 1
            if self._fields_left < 0:
                raise FileFormatError(self.path, f"has more than {self._max_fields:,} parts")
            key, at = self._varint(at, end)
            number, kind = key >> 3, key & 7
            if kind == VARINT:
                value, at = self._varint(at, end)
                yield number, kind, value, value
                continue
            if kind == BYTES:
                length, at = self._varint(at, end)
            elif kind in (FIXED32, FIXED64):
                length = 4 if kind == FIXED32 else 8
            else:
                raise self._damaged()
            if number == 0 or length > end - at:
                raise self._damaged()
            yield number, kind, at, at + length
            at += length

    def text(self, start: int, end: int) -> str:
        """A short string; what is not UTF-8 in it is replaced, since names are only shown."""
        if end - start > MAX_TEXT_BYTES:
            raise FileFormatError(self.path, f"has a name of {end - start:,} bytes")
        return self._data[start:end].decode("utf-8", "replace")

    def bytes(self, start: int, end: int) -> bytes:
        return self._data[start:end]

    def float(self, start: int) -> float:
        (value,) = struct.unpack_from("<f", self._data, start)
        return float(value)

    def integers(self, field: Field) -> list[int]:
        """A repeated int64 field, packed or not."""
        _, kind, start, end = field
        if kind == VARINT:
            return [_signed(start)]
        if kind != BYTES or end - start > MAX_TEXT_BYTES:
            raise self._damaged()
        values, at = [], start
        while at < end:
            value, at = self._varint(at, end)
            values.append(_signed(value))
        return values

    def _varint(self, at: int, end: int) -> tuple[int, int]:
        data, value, shift = self._data, 0, 0
        for place in range(at, min(end, at + MAX_VARINT_BYTES)):
            byte = data[place]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & 0xFFFF_FFFF_FFFF_FFFF, place + 1
            shift += 7
        raise self._damaged()

    def _damaged(self) -> FileFormatError:
        return FileFormatError(self.path, "is not an ONNX model, or is damaged")


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value
