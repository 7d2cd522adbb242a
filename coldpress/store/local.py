"""The store on disk.

    blobs/<sha256>               what files hold, each once, read-only
    trees/<digest>/<model>/      a model's files under their names: links to blobs
    refs/<name>/<tag>.json       which files a name stands for; written last, whole or not at all
    partial/                     what has arrived so far, and locks

A model exists once its reference does, so a killed pull leaves nothing that loads.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from coldpress.demo_model import cache_directory
from coldpress.store.files import check_paths
from coldpress.store.names import ModelName, find_name
from quant.format.errors import FileFormatError, InputError
from quant.format.staging import disk_errors, staged_directory, write_file_atomically

SCHEMA_VERSION = 1
_MAX_REF_BYTES = 4 << 20
_STALE_SECONDS = 7 * 24 * 3600.0
_COPIED = (".onnx", ".data", ".onnx_data", ".engine", ".plan")
"""Readers of these refuse files that have several names, so they are copied out of the blobs."""


@dataclass(frozen=True)
class StoredFile:
    """One file of a model: its path with forward slashes, its size and its SHA-256."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Entry:
    """What a name stands for. source: where it came from. created: ISO 8601, UTC."""

    name: ModelName
    source: str
    created: str
    files: tuple[StoredFile, ...]

    @property
    def bytes(self) -> int:
        return sum(file.bytes for file in self.files)

    @property
    def digest(self) -> str:
        """Of all paths and contents: the same for the same model under another name."""
        listed = sorted((file.path, file.bytes, file.sha256) for file in self.files)
        return hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:32]


class Store:
    """Models below `root`: `$COLDPRESS_HOME/store`, or `coldpress/store` in the user's cache."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = default_root() if root is None else root

    @property
    def partial(self) -> Path:
        return self.root / "partial"

    def blob(self, sha256: str) -> Path:
        """Where a blob lies, or would; a blob that is there is whole."""
        return self.root / "blobs" / sha256

    def directory(self, entry: Entry) -> Path:
        """The model's files under their names. InputError where some of it is gone."""
        tree = self.root / "trees" / entry.digest / entry.name.short
        if not tree.is_dir():
            raise InputError(f"{tree}: is gone from the store; pull '{entry.name}' again")
        return tree

    def find(self, name: ModelName) -> Entry | None:
        path = self._ref(name)
        return _read_ref(path) if path.is_file() else None

    def entries(self) -> list[Entry]:
        """All models, by name and tag."""
        paths = (self.root / "refs").glob("*/*.json")
        return sorted((_read_ref(path) for path in paths), key=lambda entry: entry.name)

    def add(self, name: ModelName, source: str, files: Iterable[StoredFile]) -> Entry:
        """Make `name` stand for files whose blobs are there, whatever it stood for before."""
        created = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        entry = Entry(name, source, created, tuple(files))
        check_paths((file.path for file in entry.files), source)
        with disk_errors(self.root):
            self._make_tree(entry)
            text = json.dumps({"schema_version": SCHEMA_VERSION, **_to_json(entry)}, indent=1)
            path = self._ref(name)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file_atomically(path, f"{text}\n".encode())
        return entry

    def known(self) -> str:
        """All names, for a sentence that goes on after "the store"."""
        names = ", ".join(str(entry.name) for entry in self.entries())
        return f"has: {names}" if names else "is empty"

    def get(self, name: ModelName) -> Entry:
        """InputError if there is no such model."""
        entry = self.find(name)
        if entry is None:
            raise InputError(f"the store has no '{name}'; it {self.known()}")
        return entry

    def remove(self, name: ModelName) -> None:
        """Forget a name. InputError if there is none. The files go with `collect`."""
        self._ref(self.get(name).name).unlink()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """While something is added: nothing is collected."""
        with self._locked(fcntl.LOCK_SH):
            yield

    def collect(self) -> int | None:
        """Delete what no name needs; returns the bytes freed, None if a pull is under way."""
        try:
            with self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB):
                return self._collect()
        except BlockingIOError:
            return None

    def _collect(self) -> int:
        entries = self.entries()
        trees = {entry.digest for entry in entries}
        blobs = {file.sha256 for entry in entries for file in entry.files}
        for tree in _children(self.root / "trees"):
            if tree.name not in trees:
                shutil.rmtree(tree, ignore_errors=True)
        freed = 0
        for blob in _children(self.root / "blobs"):
            if blob.name not in blobs:
                freed += blob.stat().st_size
                blob.unlink()
        for left in _children(self.partial):
            if time.time() - left.stat().st_mtime > _STALE_SECONDS:
                left.unlink()
        return freed

    def _make_tree(self, entry: Entry) -> None:
        tree = self.root / "trees" / entry.digest / entry.name.short
        if tree.is_dir():
            return
        try:
            with staged_directory(tree) as staging:
                for file in entry.files:
                    self._place(self.blob(file.sha256), staging / file.path)
        except InputError:
            if not tree.is_dir():  # another pull of the same was not faster: a real problem
                raise

    @staticmethod
    def _place(blob: Path, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in _COPIED:
            shutil.copyfile(blob, path)
            return
        try:
            os.link(blob, path)
        except OSError:  # a file system without links
            shutil.copyfile(blob, path)

    def _ref(self, name: ModelName) -> Path:
        return self.root / "refs" / name.name.replace("/", "%") / f"{name.tag}.json"

    @contextmanager
    def _locked(self, mode: int) -> Iterator[None]:
        with disk_errors(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
            with (self.root / "lock").open("ab") as file:
                fcntl.flock(file, mode)
                yield


def default_root() -> Path:
    home = os.environ.get("COLDPRESS_HOME")
    return (Path(home) if home else cache_directory()) / "store"


def _children(directory: Path) -> list[Path]:
    return list(directory.iterdir()) if directory.is_dir() else []


def _to_json(entry: Entry) -> dict[str, Any]:
    return {
        "name": entry.name.name,
        "tag": entry.name.tag,
        "source": entry.source,
        "created": entry.created,
        "files": [asdict(file) for file in entry.files],
    }


def _read_ref(path: Path) -> Entry:
    try:
        raw = path.read_bytes() if path.stat().st_size <= _MAX_REF_BYTES else b""
        fields = json.loads(raw)
        if fields["schema_version"] != SCHEMA_VERSION:
            raise FileFormatError(path, "was written by another version of coldpress; pull again")
        name = find_name(f"{fields['name']}:{fields['tag']}")
        files = tuple(StoredFile(**file) for file in fields["files"])
        well_formed = all(
            isinstance(file.path, str)
            and type(file.bytes) is int
            and isinstance(file.sha256, str)
            and len(file.sha256) == 64
            and file.sha256.isalnum()
            for file in files
        )
        if name is None or not well_formed:
            raise ValueError
        check_paths((file.path for file in files), str(path))
        return Entry(name, str(fields["source"]), str(fields["created"]), files)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise FileFormatError(path, "is damaged; remove the file and pull again") from error
