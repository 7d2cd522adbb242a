"""From an address to a blob: resumed where it was cut off, and checked before it counts."""

import fcntl
import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from pathlib import Path
from typing import IO, Any

from coldpress.store.fetch import HttpError, open_url
from coldpress.store.local import Store, StoredFile
from quant.format.errors import InputError
from quant.format.staging import disk_errors

CHUNK_BYTES = 1 << 20
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHA1 = re.compile(r"[0-9a-f]{40}")
_PAUSES = (0.5, 2.0, 5.0, 10.0)
"""Seconds before each further attempt that gets nothing."""

OnBytes = Callable[[int], None]
"""Told how many bytes more have arrived."""


@dataclass(frozen=True)
class RemoteFile:
    """A file of a model elsewhere. One of `sha256` and `git_sha1` (of git's blob header and the
    content) says what it must hold. headers: for the host of `url` alone."""

    path: str
    bytes: int
    url: str
    sha256: str | None = None
    git_sha1: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        # They become names of files here.
        for digest, pattern in ((self.sha256, _SHA256), (self.git_sha1, _SHA1)):
            if digest is not None and not pattern.fullmatch(digest):
                raise InputError(f"{self.url}: {digest[:100]!r} is no digest; refused")
        if self.sha256 is None and self.git_sha1 is None:
            raise InputError(f"{self.url}: comes without a digest; refused")
        if type(self.bytes) is not int or self.bytes < 0:
            raise InputError(f"{self.url}: comes without a size; refused")

    @property
    def key(self) -> str:
        return self.sha256 or f"git-{self.git_sha1}"


def fetch_file(
    store: Store,
    file: RemoteFile,
    on_bytes: OnBytes = lambda _: None,
    pause: Callable[[float], None] = time.sleep,
) -> StoredFile:
    """Bring a file into the store unless it is there. Several processes may do so at once.

    InputError where it cannot be had, when what has arrived is kept for the next attempt, or where
    it is not what was promised, when it is deleted.
    """
    with disk_errors(store.root), one_at_a_time(store.partial / f"{file.key}.lock"):
        if file.sha256 is not None and store.blob(file.sha256).is_file():
            on_bytes(file.bytes)
            return StoredFile(file.path, file.bytes, file.sha256)
        partial = store.partial / file.key
        if partial.is_file() and partial.stat().st_size > 0:
            with suppress(
                _WrongContentError
            ):  # what was kept may be damaged; once more from the start
                return _fetched(store, file, partial, on_bytes, pause)
        return _fetched(store, file, partial, on_bytes, pause)


def keep_blob(store: Store, aside: Path, path: str, sha256: str, size: int) -> StoredFile:
    """Make a whole file on the store's disk one of its blobs, durably and read-only."""
    blob = store.blob(sha256)
    blob.parent.mkdir(parents=True, exist_ok=True)
    if blob.is_file():
        aside.unlink()
    else:
        with aside.open("rb") as file:
            os.fchmod(file.fileno(), 0o444)
            os.fsync(file.fileno())
        aside.replace(blob)
    return StoredFile(path, size, sha256)


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Waits for whoever else is at it, in this process or another; a killed one lets go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class _WrongContentError(InputError):
    """What arrived is not what was promised."""


def _fetched(
    store: Store,
    file: RemoteFile,
    partial: Path,
    on_bytes: OnBytes,
    pause: Callable[[float], None],
) -> StoredFile:
    with partial.open("a+b") as out:
        arriving = _Arriving(file, out, on_bytes)
        arriving.read_kept()
        _keep_trying(arriving, pause)
        sha256 = arriving.checked()
    return keep_blob(store, partial, file.path, sha256, file.bytes)


def _keep_trying(arriving: "_Arriving", pause: Callable[[float], None]) -> None:
    attempt, furthest = 0, arriving.done
    while (failure := arriving.go_on()) is not None:
        attempt = 0 if arriving.done > furthest else attempt + 1
        furthest = max(furthest, arriving.done)
        if attempt >= len(_PAUSES):
            raise failure
        pause(_PAUSES[attempt])


class _Arriving:
    """A file on its way: what is written so far, and its digests."""

    def __init__(self, file: RemoteFile, out: IO[bytes], on_bytes: OnBytes) -> None:
        self._file = file
        self._out = out
        self._on_bytes = on_bytes
        self.done = 0
        self.start_over()

    def start_over(self) -> None:
        self._sha256 = hashlib.sha256()
        self._git_sha1 = hashlib.sha1(b"blob %d\0" % self._file.bytes, usedforsecurity=False)
        self._on_bytes(-self.done)
        self.done = 0

    def read_kept(self) -> None:
        """Go over what an earlier attempt has left."""
        self._out.seek(0)
        while chunk := self._out.read(CHUNK_BYTES):
            self._count(chunk)

    def go_on(self) -> HttpError | None:
        """Write what is missing; a failure that may pass is returned, others are raised."""
        if self.done == self._file.bytes:
            return None
        try:
            with self._open() as response:
                self._rewind_unless_partial(response)
                while chunk := response.read(CHUNK_BYTES):
                    self._write(chunk)
        except HttpError as failure:
            if 400 <= failure.status < 500 and failure.status not in (408, 416, 429):
                raise
            if failure.status == 416:
                self._truncate()
            return failure
        except (HTTPException, TimeoutError, ConnectionError) as error:
            return HttpError(f"{self._file.url}: the connection broke ({error}); run again")
        missing = self._file.bytes - self.done
        if missing:
            return HttpError(f"{self._file.url}: ended {missing:,} bytes early; run again")
        return None

    def checked(self) -> str:
        """The SHA-256 of the whole; _WrongContentError unless it is what was promised."""
        self._out.flush()
        found, wanted = self._sha256.hexdigest(), self._file
        if wanted.sha256 in (None, found) and wanted.git_sha1 in (None, self._git_sha1.hexdigest()):
            return found
        self._truncate()
        raise _WrongContentError(
            f"{wanted.url}: what arrived is not what was promised (its digest differs); it was "
            "deleted; pull again, or from elsewhere"
        )

    def _open(self) -> Any:
        headers = dict(self._file.headers)
        if self.done:
            headers["Range"] = f"bytes={self.done}-"
        return open_url(self._file.url, headers)

    def _rewind_unless_partial(self, response: Any) -> None:
        begins = response.headers.get("Content-Range", "").startswith(f"bytes {self.done}-")
        if self.done and not (response.status == 206 and begins):
            self._truncate()

    def _write(self, chunk: bytes) -> None:
        if self.done + len(chunk) > self._file.bytes:
            self._truncate()
            raise _WrongContentError(
                f"{self._file.url}: is larger than the {self._file.bytes:,} bytes that it was "
                "listed with; refused"
            )
        self._out.write(chunk)
        self._count(chunk)

    def _count(self, chunk: bytes) -> None:
        self._sha256.update(chunk)
        self._git_sha1.update(chunk)
        self.done += len(chunk)
        self._on_bytes(len(chunk))

    def _truncate(self) -> None:
        self._out.truncate(0)
        self.start_over()
