"""Read safetensors files that may be corrupt or hostile.

Layout: 8 bytes little-endian header length, a JSON object, then the data. Each entry is
`name: {dtype, shape, data_offsets: [begin, end]}` with offsets from the start of the data; the
ranges must tile the data without hole or overlap. Source: the safetensors format description.
"""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from quant.format.errors import FileFormatError, InputError
from quant.format.stored import FileBytes

MAX_HEADER_BYTES = 100 << 20

DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype("<u1"),
    "I8": np.dtype("<i1"),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}
DTYPE_NAMES: Mapping[np.dtype[Any], str] = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """What a header says of one tensor; `begin` and `end` count from the start of the file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def num_bytes(self) -> int:
        return self.end - self.begin


class SafetensorsFile:
    """The header of one file, checked in full; tensors are read one at a time.

    Raises InputError when the file cannot be opened, FileFormatError when it is malformed.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        try:
            with self.path.open("rb") as file:
                self._file_bytes = os.fstat(file.fileno()).st_size
                header = _read_header(self.path, file.read(8), self._file_bytes, file.read)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror})") from error
        data_start = self._file_bytes - header.data_bytes
        self.metadata: dict[str, str] = header.metadata
        self.tensors: dict[str, TensorInfo] = {
            name: _checked_entry(self.path, name, entry, data_start, header.data_bytes)
            for name, entry in header.entries.items()
        }
        _check_tiling(self.path, self.tensors, data_start, self._file_bytes)

    def locate(self, name: str) -> FileBytes | None:
        """Where a matrix lies, for those who read it in parts; None for other shapes."""
        info = self.tensors[name]
        if len(info.shape) != 2:
            return None
        rows, columns = info.shape
        return FileBytes(self.path, info.begin, rows, columns * info.dtype.itemsize)

    def load(self, name: str) -> npt.NDArray[Any]:
        """A fresh array with the numbers of one tensor, in its stored dtype.

        The bytes are copied out of the file: a file that is truncated later can then fail a load,
        but never kill the process as a memory map would.
        """
        info = self.tensors[name]
        array = np.empty(info.shape, dtype=info.dtype)
        target = array.reshape(-1).view(np.uint8).data
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(info.begin)
                done = 0
                while done < len(target):
                    count = file.readinto(target[done:])
                    if not count:
                        raise FileFormatError(
                            self.path, f"tensor '{name}' ends early; the file became shorter"
                        )
                    done += count
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read ({error.strerror})") from error
        return array


@dataclass(frozen=True)
class _Header:
    entries: dict[str, Any]
    metadata: dict[str, str]
    data_bytes: int


def _read_header(path: Path, prefix: bytes, file_bytes: int, read: Any) -> _Header:
    if len(prefix) < 8:
        raise FileFormatError(path, f"is {file_bytes} bytes long, too short for safetensors")
    length = int.from_bytes(prefix, "little")
    if length > MAX_HEADER_BYTES:
        raise FileFormatError(
            path, f"claims a header of {length:,} bytes; the limit is {MAX_HEADER_BYTES:,}"
        )
    if length > file_bytes - 8:
        raise FileFormatError(
            path, f"claims a header of {length:,} bytes but is {file_bytes:,} bytes long"
        )
    header = _parse_json(path, read(length))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FileFormatError(path, "'__metadata__' is not a map of strings")
    return _Header(header, metadata, file_bytes - 8 - length)


def _parse_json(path: Path, raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise FileFormatError(path, f"the header names '{twice}' twice")
        return result

    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(path, f"the header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise FileFormatError(path, "the header is not a JSON object")
    return header


def _checked_entry(
    path: Path, name: str, entry: Any, data_start: int, data_bytes: int
) -> TensorInfo:
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise FileFormatError(path, f"tensor '{name}' needs dtype, shape and data_offsets alone")
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise FileFormatError(path, f"tensor '{name}' has the unknown dtype {entry['dtype']!r}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _are_sizes(shape) or len(shape) > 32:
        raise FileFormatError(path, f"tensor '{name}' has an invalid shape")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise FileFormatError(path, f"tensor '{name}' has invalid data_offsets")
    begin, end = offsets
    if begin > end or end > data_bytes:
        raise FileFormatError(
            path,
            f"tensor '{name}' claims bytes {begin:,} to {end:,} but the file holds "
            f"{data_bytes:,} bytes of data; it is truncated or corrupt",
        )
    needed = math.prod(shape) * dtype.itemsize
    if end - begin != needed:
        raise FileFormatError(
            path,
            f"tensor '{name}' of shape {shape} and dtype {entry['dtype']} needs {needed:,} bytes "
            f"but claims {end - begin:,}",
        )
    return TensorInfo(dtype, tuple(shape), data_start + begin, data_start + end)


def _are_sizes(values: Any) -> bool:
    return isinstance(values, list) and all(type(v) is int and 0 <= v < 1 << 63 for v in values)


def _check_tiling(
    path: Path, tensors: Mapping[str, TensorInfo], data_start: int, data_end: int
) -> None:
    covered = data_start
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin < covered:
            raise FileFormatError(path, f"tensor '{name}' overlaps the tensor before it")
        if info.begin > covered:
            raise FileFormatError(
                path, f"{info.begin - covered:,} bytes before '{name}' are unused"
            )
        covered = info.end
    if covered != data_end:
        raise FileFormatError(
            path, f"{data_end - covered:,} bytes after the last tensor are unused"
        )
