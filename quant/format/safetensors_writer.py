"""Write safetensors shards as a stream: memory holds one tensor, bytes never depend on the order.

Within a shard tensors lie by falling item size, then by name, so that each is aligned for its
dtype; this is the order of the reference writer. Shards are cut in the order of `add`.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from quant.format.errors import UnsupportedModelError
from quant.format.safetensors_file import DTYPE_NAMES, TensorInfo

DEFAULT_SHARD_BYTES = 5 * 10**9
INDEX_NAME = "model.safetensors.index.json"
_COPY_BYTES = 1 << 20
_METADATA = {"format": "pt"}
"""transformers refuses a file that does not say so."""


def shard_names(count: int) -> list[str]:
    """Names of the files of a checkpoint with `count` shards."""
    if count == 1:
        return ["model.safetensors"]
    return [f"model-{i + 1:05d}-of-{count:05d}.safetensors" for i in range(count)]


class ShardedWriter:
    """Adds tensors one by one to a directory that `staged_directory` made, and that syncs it.

    Until `finish` every file has a name that no loader knows. As a context manager it finishes when
    the block ends well. Disk room needed: the checkpoint and one shard more.
    """

    def __init__(
        self,
        directory: Path,
        max_shard_bytes: int = DEFAULT_SHARD_BYTES,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        self._directory = Path(directory)
        self._max_shard_bytes = max_shard_bytes
        self._metadata = {**_METADATA, **(metadata or {})}
        self._spool: BinaryIO | None = None
        self._pending: dict[str, TensorInfo] = {}
        self._pending_bytes = 0
        self._shards: list[list[str]] = []
        self._added: set[str] = set()
        self._total_bytes = 0
        self._finished = False

    def add(self, name: str, array: npt.NDArray[Any]) -> None:
        """Append one tensor. Raises UnsupportedModelError for a dtype that safetensors lacks."""
        assert not self._finished, "add after finish"
        assert name not in self._added, f"tensor '{name}' was added twice"
        if array.dtype not in DTYPE_NAMES:
            raise UnsupportedModelError(f"tensor '{name}': safetensors has no dtype {array.dtype}")
        if self._pending and self._pending_bytes + array.nbytes > self._max_shard_bytes:
            self._close_shard()
        self._append(name, np.ascontiguousarray(array).reshape(array.shape))

    def finish(self) -> list[Path]:
        """Give the shards their names and write the index; returns the files written."""
        assert not self._finished, "finish was called twice"
        if self._pending or not self._shards:
            self._close_shard()
        self._finished = True
        names = shard_names(len(self._shards))
        for i, name in enumerate(names):
            self._unnamed(i).rename(self._directory / name)
        files = [self._directory / name for name in names]
        return files if len(files) == 1 else [*files, self._write_index(names)]

    def __enter__(self) -> "ShardedWriter":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and not self._finished:
            self.finish()
        elif self._spool is not None:
            self._spool.close()

    def _append(self, name: str, array: npt.NDArray[Any]) -> None:
        if self._spool is None:
            self._spool = (self._directory / "shard.spool").open("w+b")
        begin = self._spool.tell()
        self._spool.write(array.reshape(-1).view(np.uint8).data)
        self._pending[name] = TensorInfo(array.dtype, array.shape, begin, begin + array.nbytes)
        self._pending_bytes += array.nbytes
        self._added.add(name)

    def _close_shard(self) -> None:
        """Copy the spooled tensors behind their header, in canonical order."""
        ordered = _canonical(self._pending)
        path = self._unnamed(len(self._shards))
        with path.open("xb") as shard:
            shard.write(_header(ordered, self._metadata))
            for _, info in ordered:
                assert self._spool is not None
                self._spool.seek(info.begin)
                _copy_bytes(self._spool, shard, info.num_bytes)
        if self._spool is not None:
            self._spool.close()
            Path(self._spool.name).unlink()
            self._spool = None
        self._total_bytes += self._pending_bytes
        self._shards.append(list(self._pending))
        self._pending, self._pending_bytes = {}, 0

    def _unnamed(self, index: int) -> Path:
        return self._directory / f"shard-{index:05d}.unfinished"

    def _write_index(self, names: list[str]) -> Path:
        weight_map = {
            tensor: name
            for name, shard in zip(names, self._shards, strict=True)
            for tensor in shard
        }
        index = {
            "metadata": {"total_size": self._total_bytes},
            "weight_map": dict(sorted(weight_map.items())),
        }
        path = self._directory / INDEX_NAME
        path.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        return path


def file_sizes(
    tensors: Iterable[tuple[str, np.dtype[Any], tuple[int, ...]]],
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> list[int]:
    """Bytes of each shard that a ShardedWriter without metadata makes of (name, dtype, shape) in
    that order, headers included."""
    shards: list[dict[str, TensorInfo]] = [{}]
    pending = 0
    for name, dtype, shape in tensors:
        size = math.prod(shape) * dtype.itemsize
        if shards[-1] and pending + size > max_shard_bytes:
            shards.append({})
            pending = 0
        shards[-1][name] = TensorInfo(dtype, shape, pending, pending + size)
        pending += size
    return [
        len(_header(_canonical(shard), _METADATA)) + sum(info.num_bytes for info in shard.values())
        for shard in shards
    ]


def _canonical(shard: Mapping[str, TensorInfo]) -> list[tuple[str, TensorInfo]]:
    return sorted(shard.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))


def _header(ordered: list[tuple[str, TensorInfo]], metadata: Mapping[str, str]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    offset = 0
    for name, info in ordered:
        entries[name] = {
            "dtype": DTYPE_NAMES[info.dtype],
            "shape": list(info.shape),
            "data_offsets": [offset, offset + info.num_bytes],
        }
        offset += info.num_bytes
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _copy_bytes(source: BinaryIO, target: BinaryIO, count: int) -> None:
    while count:
        piece = source.read(min(count, _COPY_BYTES))
        assert piece, "the spool is shorter than what was written to it"
        target.write(piece)
        count -= len(piece)
