"""Strict reader of GGUF files (versions 2 and 3, little endian).

Format: github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every count and size is checked against
a limit and against the file before anything is allocated for it, so a hostile file costs nothing.
"""

import contextlib
import itertools
import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quant.format.errors import FileFormatError
from quant.format.gguf_types import TYPE_BY_ID, GgmlType

MAX_HEADER_BYTES = 64 << 20
MAX_NAME_BYTES = 64 << 10
MAX_TENSORS = 65536
MAX_KEYS = 65536
MAX_STRINGS = 1 << 20
"""Strings in all arrays of a header: several times the largest vocabulary with its merges."""
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 20

STRING, ARRAY, BOOL = 8, 9, 7
SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    BOOL: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}
"""Numbers that a header can hold, by GGUF's id of their type."""

MetadataValue = int | float | bool | str | list[str] | npt.NDArray[Any]


@dataclass(frozen=True)
class GgufTensor:
    """Where a tensor lies. `shape` is in numpy order, [out, in]; `offset` counts from the start of
    the file."""

    name: str
    type: GgmlType
    shape: tuple[int, ...]
    offset: int
    nbytes: int


class _Header:
    """A cursor over the head of the file that refuses to move past its end."""

    def __init__(self, path: Path, data: mmap.mmap | bytes) -> None:
        self.path, self.data = path, data
        self.end = min(len(data), MAX_HEADER_BYTES)
        self.at = 0
        self.strings = 0

    def error(self, problem: str) -> FileFormatError:
        return FileFormatError(self.path, problem)

    def advance(self, count: int, what: str) -> int:
        """Start of the next `count` bytes, which belong to `what`."""
        start = self.at
        if count > self.end - start:
            if self.end == len(self.data):
                raise self.error(f"the file ends inside {what}; download or build it again")
            raise self.error(f"{what} reaches past the {MAX_HEADER_BYTES >> 20} MiB header limit")
        self.at = start + count
        return start

    def integer(self, width: int, what: str) -> int:
        start = self.advance(width, what)
        return int.from_bytes(self.data[start : start + width], "little")

    def text(self, what: str, limit: int = MAX_HEADER_BYTES) -> str:
        length = self.integer(8, what)
        if length > limit:
            raise self.error(f"{what} claims {length} bytes; the limit is {limit}")
        start = self.advance(length, what)
        try:
            return self.data[start : start + length].decode()
        except UnicodeDecodeError:
            raise self.error(f"{what} is not UTF-8 text") from None

    def value(self, key: str) -> MetadataValue:
        what = f"the value of key '{key}'"
        kind = self.integer(4, what)
        if kind == STRING:
            return self.text(what)
        if kind == ARRAY:
            return self.array(key, what)
        number: MetadataValue = self.numbers(kind, 1, what)[0].item()
        return number

    def numbers(self, kind: int, count: int, what: str) -> npt.NDArray[Any]:
        dtype = SCALARS.get(kind)
        if dtype is None:
            raise self.error(f"{what} has the unknown value type {kind}")
        start = self.advance(count * dtype.itemsize, what)
        if kind == BOOL and self.data[start : start + count].strip(b"\0\1"):
            raise self.error(f"{what} holds a boolean that is neither 0 nor 1")
        return np.frombuffer(self.data, dtype, count, start)

    def array(self, key: str, what: str) -> MetadataValue:
        kind = self.integer(4, what)
        count = self.integer(8, what)
        if kind == ARRAY:
            raise self.error(f"{what} is an array of arrays, which is not supported")
        if kind == STRING:
            return self.texts(count, what)
        return self.numbers(kind, count, what).copy()

    def texts(self, count: int, what: str) -> list[str]:
        """The hot loop: vocabularies and merges are hundreds of thousands of short strings."""
        self.strings += count
        if self.strings > MAX_STRINGS:
            raise self.error(f"{what} claims {count} strings; the limit is {MAX_STRINGS} in all")
        data, at, end = self.data, self.at, self.end
        length_at = struct.Struct("<Q").unpack_from
        found: list[str] = []
        try:
            for _ in range(count):
                (length,) = length_at(data, at)
                start = at + 8
                at = start + length
                if at > end:
                    self.at = start
                    self.advance(length, what)
                found.append(data[start:at].decode())
        except struct.error:
            self.at = end
            self.advance(1, what)
        except UnicodeDecodeError:
            raise self.error(f"{what} has text that is not UTF-8 at index {len(found)}") from None
        self.at = at
        return found


class GgufFile:
    """A GGUF file: `metadata` and `tensors` are read at once, tensor data is mapped, not read.

    Numeric arrays of the metadata are numpy arrays, string arrays are lists. Raises
    FileFormatError naming the key or tensor that is wrong.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self._data = self._map()
        header = self._header()
        self.version, tensor_count, key_count = self._counts(header)
        self.metadata: dict[str, MetadataValue] = {}
        for _ in range(key_count):
            key = header.text("the name of a key", MAX_NAME_BYTES)
            if key in self.metadata:
                raise header.error(f"key '{key}' appears twice")
            self.metadata[key] = header.value(key)
        self.alignment = self._alignment()
        infos = [self._tensor_info(header) for _ in range(tensor_count)]
        self.data_offset = -(-header.at // self.alignment) * self.alignment
        self.tensors: dict[str, GgufTensor] = {}
        for info in infos:
            if info.name in self.tensors:
                raise FileFormatError(self.path, f"tensor '{info.name}' appears twice")
            self.tensors[info.name] = self._placed(info)
        self._check_overlap()

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """uint8 [nbytes]: a tensor's bytes, a read-only view of the mapped file."""
        tensor = self.tensors[name]
        return np.frombuffer(self._data, np.uint8, tensor.nbytes, tensor.offset)

    def forget(self, name: str) -> None:
        """Lets the system drop a tensor's pages, so that one pass over a file stays small."""
        tensor = self.tensors[name]
        start = tensor.offset // mmap.PAGESIZE * mmap.PAGESIZE
        advice = getattr(mmap, "MADV_DONTNEED", None)
        if advice is not None and isinstance(self._data, mmap.mmap):
            with contextlib.suppress(OSError):
                self._data.madvise(advice, start, tensor.offset + tensor.nbytes - start)

    def _map(self) -> mmap.mmap | bytes:
        try:
            with self.path.open("rb") as file:
                if file.seek(0, 2) == 0:
                    return b""
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise FileFormatError(self.path, f"cannot be read: {reason}") from None

    def _header(self) -> _Header:
        if self._data[:4] != b"GGUF":
            raise FileFormatError(self.path, "is not a GGUF file: it does not start with 'GGUF'")
        return _Header(self.path, self._data)

    def _counts(self, header: _Header) -> tuple[int, int, int]:
        header.at = 4
        version = header.integer(4, "the version")
        if version not in (2, 3):
            swapped = int.from_bytes(version.to_bytes(4, "little"), "big")
            kind = "big-endian GGUF" if swapped in (2, 3) else f"GGUF version {version}"
            raise header.error(f"is {kind}; only little-endian versions 2 and 3 are supported")
        tensors = header.integer(8, "the tensor count")
        keys = header.integer(8, "the key count")
        if tensors > MAX_TENSORS:
            raise header.error(f"claims {tensors} tensors; the limit is {MAX_TENSORS}")
        if keys > MAX_KEYS:
            raise header.error(f"claims {keys} metadata keys; the limit is {MAX_KEYS}")
        return version, tensors, keys

    def _alignment(self) -> int:
        value = self.metadata.get("general.alignment", 32)
        if type(value) is not int or not 0 < value <= MAX_ALIGNMENT or value & (value - 1):
            problem = f"key 'general.alignment' must be a power of two, not {value!r}"
            raise FileFormatError(self.path, problem)
        return value

    def _tensor_info(self, header: _Header) -> GgufTensor:
        """One tensor as the header has it; its offset still counts from the data section."""
        name = header.text("the name of a tensor", MAX_NAME_BYTES)
        what = f"the description of tensor '{name}'"
        dimensions = header.integer(4, what)
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            limits = f"1 to {MAX_DIMENSIONS} are supported"
            raise header.error(f"tensor '{name}' claims {dimensions} dimensions; {limits}")
        shape = tuple(header.integer(8, what) for _ in range(dimensions))[::-1]
        type_id = header.integer(4, what)
        offset = header.integer(8, what)
        kind = TYPE_BY_ID.get(type_id)
        if kind is None:
            raise header.error(f"tensor '{name}' has the unknown ggml type {type_id}")
        if 0 in shape or math.prod(shape) >= 1 << 62:
            raise header.error(f"tensor '{name}' has the impossible shape {list(shape)}")
        if shape[-1] % kind.block:
            problem = f"rows of {shape[-1]} elements, not whole {kind} blocks of {kind.block}"
            raise header.error(f"tensor '{name}' has {problem}")
        return GgufTensor(name, kind, shape, offset, kind.nbytes(shape))

    def _placed(self, info: GgufTensor) -> GgufTensor:
        offset = self.data_offset + info.offset
        if info.offset % self.alignment:
            problem = f"starts at {info.offset}, not a multiple of {self.alignment}"
            raise FileFormatError(self.path, f"tensor '{info.name}' {problem}")
        if offset + info.nbytes > len(self._data):
            problem = f"needs bytes up to {offset + info.nbytes}; the file has {len(self._data)}"
            raise FileFormatError(self.path, f"tensor '{info.name}' {problem}")
        return GgufTensor(info.name, info.type, info.shape, offset, info.nbytes)

    def _check_overlap(self) -> None:
        ordered = sorted(self.tensors.values(), key=lambda tensor: tensor.offset)
        for before, after in itertools.pairwise(ordered):
            if after.offset < before.offset + before.nbytes:
                problem = f"tensors '{before.name}' and '{after.name}' overlap"
                raise FileFormatError(self.path, problem)
