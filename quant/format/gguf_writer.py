"""Streaming writer of GGUF version 3: the layout is known to the byte before any data is.

The file is written beside its destination and renamed when complete. Its header goes in last, so
that what a killed run leaves behind does not even begin like a GGUF file.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from quant.format.gguf_file import ARRAY, BOOL, SCALARS, STRING
from quant.format.gguf_types import GgmlType
from quant.format.staging import require_free_bytes, staged_file

ALIGNMENT = 32
MAX_NAME_LENGTH = 63
"""ggml keeps names in 64 bytes with a closing NUL."""

TypedValue = bool | str | list[str] | np.number[Any] | npt.NDArray[Any]
"""A metadata value whose numpy type says which GGUF type it gets."""

SCALAR_IDS = {dtype: kind for kind, dtype in SCALARS.items()}


@dataclass(frozen=True)
class TensorSlot:
    """A tensor to be written. `shape` is in numpy order, [out, in]."""

    name: str
    type: GgmlType
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return self.type.nbytes(self.shape)


class GgufLayout:
    """Header bytes and offsets of a file, from its metadata and tensors alone.

    `file_bytes` is the exact size of the finished file.
    """

    def __init__(self, metadata: Mapping[str, TypedValue], slots: Iterable[TensorSlot]) -> None:
        self.slots = tuple(slots)
        names = [slot.name for slot in self.slots]
        assert len(set(names)) == len(names), "a tensor is written once"
        self.offsets: dict[str, int] = {}
        at = 0
        for slot in self.slots:
            assert len(slot.name) <= MAX_NAME_LENGTH and slot.shape[-1] % slot.type.block == 0
            self.offsets[slot.name] = at
            at = _aligned(at + slot.nbytes)
        header = self._header(metadata)
        self.header = header.ljust(_aligned(len(header)), b"\0")
        self.file_bytes = len(self.header) + at

    def _header(self, metadata: Mapping[str, TypedValue]) -> bytes:
        parts = [b"GGUF", struct.pack("<IQQ", 3, len(self.slots), len(metadata))]
        for key, value in metadata.items():
            parts += [_text(key), _typed(value)]
        for slot in self.slots:
            sizes = slot.shape[::-1]
            counts = struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
            place = struct.pack("<IQ", slot.type.id, self.offsets[slot.name])
            parts += [_text(slot.name), counts, place]
        return b"".join(parts)


class GgufWriter:
    """Writes a layout's tensors in its order; use it through `gguf_writer`."""

    def __init__(self, file: BinaryIO, layout: GgufLayout) -> None:
        self._file, self.layout = file, layout
        self._written = 0
        self._file.seek(len(layout.header))

    def write(self, name: str, data: npt.NDArray[np.uint8]) -> None:
        """The bytes of the next tensor of the layout, of any array shape."""
        slot = self.layout.slots[self._written]
        assert slot.name == name, f"{slot.name} comes before {name}"
        assert data.nbytes == slot.nbytes, f"{name} has {data.nbytes} bytes, not {slot.nbytes}"
        self._file.write(np.ascontiguousarray(data).data)
        self._file.write(b"\0" * (_aligned(slot.nbytes) - slot.nbytes))
        self._written += 1

    def finish(self) -> None:
        """Write the header; every tensor is there."""
        assert self._written == len(self.layout.slots), "every tensor is written before the end"
        self._file.seek(0)
        self._file.write(self.layout.header)


@contextmanager
def gguf_writer(path: Path | str, layout: GgufLayout) -> Iterator[GgufWriter]:
    """A writer of the file at `path`, which appears when the block ends without an error.

    Raises InputError where the disk is too small, full, or cannot be written.
    """
    path = Path(path)
    require_free_bytes(path, layout.file_bytes)
    with staged_file(path) as aside, aside.open("xb") as file:
        writer = GgufWriter(file, layout)
        yield writer
        writer.finish()


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _text(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data


def _typed(value: TypedValue) -> bytes:
    """The id of a value's type, followed by the value."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _text(value)
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, list):
        texts = b"".join(_text(text) for text in value)
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + texts
    array = np.asarray(value)
    kind = SCALAR_IDS[array.dtype.newbyteorder("<")]
    if array.ndim == 0:
        return struct.pack("<I", kind) + array.tobytes()
    return struct.pack("<IIQ", ARRAY, kind, array.size) + array.tobytes()
