"""Keeps what a baseline predicted, so that the next candidate is compared without running it.

One directory per baseline, text, protocol and arithmetic, under a digest of all of them. It appears
whole or not at all; the least recently used ones make room for new ones.
"""

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from coldpress import __version__
from coldpress.demo_model import cache_directory
from coldpress.tables import human_bytes
from quant.format.errors import FileFormatError
from quant.format.staging import free_bytes, is_staging, staged_directory

if TYPE_CHECKING:
    from runtime.evaluation.baseline import Baseline, KeptBaseline, LiveBaseline
    from runtime.evaluation.protocol import Protocol

CACHE_BYTES = 20 * 10**9
"""Disk that all kept baselines together may take by default."""
LAYOUT = 1
_WEIGHTS = (".safetensors", ".gguf", ".onnx", ".data")
_SPARE_BYTES = 1 << 30
"""Left free on the disk for everybody else."""


@dataclass(frozen=True)
class Key:
    """digest: of everything that the predictions depend on. tokens: how many are scored."""

    digest: str
    tokens: int


class BaselineCache:
    """Kept baselines below a directory, `$XDG_CACHE_HOME/coldpress/baselines` by default.

    note: is told, in a sentence, what is read, written or left. A baseline that does not fit
    `limit_bytes` or the disk runs as if there were no cache.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        limit_bytes: int = CACHE_BYTES,
        note: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.directory = cache_directory() / "baselines" if directory is None else directory
        self._limit = limit_bytes
        self._note = note

    def key(self, model: Path, token_ids: Sequence[int], protocol: "Protocol", backend: str) -> Key:
        """Reads every byte of the weights: a file's name or age proves nothing."""
        windows = protocol.windows(token_ids)
        parts = {
            "layout": LAYOUT,
            "weights": _weights_digest(model),
            "tokens": hashlib.sha256(np.ascontiguousarray(windows, "<i4").tobytes()).hexdigest(),
            "protocol": asdict(protocol),
            "arithmetic": _arithmetic(backend),
        }
        digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
        return Key(digest, len(windows) * protocol.scored)

    def read(self, key: Key) -> "KeptBaseline | None":
        """The kept predictions; None where there are none. A damaged one is removed and told."""
        from runtime.evaluation.baseline import KeptBaseline

        path = self._path(key)
        if not path.is_dir():
            return None
        try:
            kept = KeptBaseline(path, key.tokens)
        except FileFormatError as error:
            self._note(f"the kept baseline is of no use and is removed: {error}")
            shutil.rmtree(path, ignore_errors=True)
            return None
        _touch(path)
        self._note(f"the baseline's predictions are read from {path}")
        return kept

    @contextmanager
    def keep(self, key: Key, live: "LiveBaseline") -> "Iterator[Baseline]":
        """`live`, written down as it goes; as it is where there is no room for it."""
        from runtime.evaluation.baseline import KeepingBaseline, kept_bytes

        needed = kept_bytes(key.tokens, live.vocab_size)
        if not self._make_room(needed):
            yield live
            return
        path = self._path(key)
        self._note(f"the baseline's predictions are kept: {human_bytes(needed)} in {path}")
        with (
            staged_directory(path, overwrite=True) as staging,
            KeepingBaseline(live, staging, key.tokens) as keeping,
        ):
            yield keeping

    def _make_room(self, needed: int) -> bool:
        """Remove what was used least recently until `needed` bytes fit; False where they cannot."""
        if needed > self._limit:
            limit = human_bytes(self._limit)
            self._note(
                f"the baseline's predictions are not kept: they take {human_bytes(needed)}, more "
                f"than the {limit} that the cache may; a larger --cache-size keeps them"
            )
            return False
        entries = self._entries()
        total = sum(size for _, size in entries)
        free = free_bytes(self.directory)
        for path, size in entries:
            if total + needed <= self._limit and free >= needed + _SPARE_BYTES:
                break
            shutil.rmtree(path, ignore_errors=True)
            self._note(f"removed to make room: {path} ({human_bytes(size)})")
            total, free = total - size, free_bytes(self.directory)
        if free < needed + _SPARE_BYTES:
            self._note(
                f"the baseline's predictions are not kept: they take {human_bytes(needed)} and the "
                f"disk has {human_bytes(free)} free, of which {human_bytes(_SPARE_BYTES)} stay so"
            )
            return False
        return True

    def _entries(self) -> list[tuple[Path, int]]:
        """Kept baselines with their sizes, the least recently used one first."""
        if not self.directory.is_dir():
            return []
        found = [p for p in self.directory.iterdir() if p.is_dir() and not is_staging(p)]
        found.sort(key=lambda path: (path.stat().st_mtime_ns, path.name))
        return [(path, sum(f.stat().st_size for f in path.iterdir())) for path in found]

    def _path(self, key: Key) -> Path:
        return self.directory / key.digest


def _weights_digest(model: Path) -> dict[str, str]:
    """sha256 of each file that decides what a model computes."""
    from compile.manifest import file_sha256

    if model.is_file():
        return {"": file_sha256(model)}
    files = sorted(p for p in model.iterdir() if p.suffix in _WEIGHTS or p.name == "config.json")
    return {path.name: file_sha256(path) for path in files}


def _arithmetic(backend: str) -> dict[str, str]:
    """What else the last bits of a prediction depend on."""
    known = {
        "backend": backend,
        "coldpress": __version__,
        "numpy": np.__version__,
        "machine": platform.machine(),
    }
    if backend == "torch":
        import torch

        return {**known, "torch": torch.__version__}
    if backend == "onnx":
        return {**known, "onnxruntime": version("onnxruntime"), "processor": _processor()}
    from compile.manifest import file_sha256
    from runtime.kernels.cpu import _native

    known["kernels"] = file_sha256(Path(str(_native.__file__)))
    return {**known, "processor": _processor()}


def _processor() -> str:
    """The kernels choose their instructions by it."""
    try:
        with Path("/proc/cpuinfo").open(encoding="utf-8") as lines:
            names = [line for line in lines if line.startswith(("model name", "flags"))][:2]
    except OSError:
        return platform.processor()
    return hashlib.sha256("".join(names).encode()).hexdigest()


def _touch(path: Path) -> None:
    try:
        os.utime(path)
    except OSError:
        return
