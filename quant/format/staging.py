"""Nothing half-written is ever found under its final name: write aside, fsync, rename."""

import errno
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from quant.format.errors import InputError

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT}
_NOT_ALLOWED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST}
_STAGING_NAME = re.compile(
    r"^\.(?P<final>.+)\.(?P<kind>partial|old)-(?P<host>.*)-(?P<pid>\d+)-[0-9a-f]{8}$"
)


@contextmanager
def staged_directory(final: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary sibling of `final` to fill; it becomes `final` when the block ends well.

    After an exception it is removed; after kill -9 it stays under a name that `is_staging` knows,
    and the next call for the same `final` removes it. Raises InputError when `final` holds
    something and `overwrite` is false, or when the disk is full.
    """
    final = Path(os.path.abspath(final))  # noqa: PTH100  (resolve() would follow a link at `final`)
    with disk_errors(final):
        if final.parent.is_dir():
            _remove_stale(final)
        _refuse_occupied(final, overwrite)
        final.parent.mkdir(parents=True, exist_ok=True)
        staging = _sibling(final, "partial")
        staging.mkdir()
        try:
            yield staging
            sync_tree(staging)
            _refuse_occupied(final, overwrite)
            _move_into_place(staging, final)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise


@contextmanager
def staged_file(final: Path) -> Iterator[Path]:
    """A name beside `final` to write a file under; it becomes `final` when the block ends well.

    Like `staged_directory`, but an existing file is replaced, as a whole or not at all.
    """
    final = Path(os.path.abspath(final))  # noqa: PTH100
    with disk_errors(final):
        final.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(final)
        aside = _sibling(final, "partial")
        try:
            yield aside
            _sync(aside)
            aside.replace(final)
            _sync(final.parent)
        except BaseException:
            aside.unlink(missing_ok=True)
            raise


def write_file_atomically(path: Path, data: bytes) -> None:
    """Write `data` so that `path` holds the old content or the new one, never a part."""
    with staged_file(path) as aside:
        aside.write_bytes(data)


def is_staging(path: Path) -> bool:
    """True for what a killed run left behind: never to be loaded."""
    match = _STAGING_NAME.match(path.name)
    return match is not None and match["kind"] == "partial"


def free_bytes(path: Path) -> int:
    """Free bytes on the disk that holds `path`, which need not exist yet."""
    existing = Path(os.path.abspath(path))  # noqa: PTH100
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def require_free_bytes(path: Path, needed_bytes: int) -> None:
    """Raise InputError when the disk that holds `path` has less room than `needed_bytes`."""
    free = free_bytes(path)
    if free < needed_bytes:
        raise InputError(
            f"{path}: writing needs {needed_bytes:,} bytes but the disk has {free:,} free; "
            "free some space or choose another output"
        )


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn what the file system says about writing `path` into a sentence for the user."""
    try:
        yield
    except OSError as error:
        if error.errno in _DISK_FULL:
            raise InputError(
                f"{path}: the disk is full; free some space or choose another output"
            ) from error
        if error.errno in _NOT_ALLOWED and _is_near(error.filename, path):
            raise InputError(f"{path}: cannot write there ({error.strerror})") from error
        raise


def sync_tree(directory: Path) -> None:
    """fsync every file and directory under `directory`, and itself."""
    for root, _, names in os.walk(directory):
        for name in names:
            _sync(Path(root) / name)
        _sync(Path(root))


def _is_near(filename: object, path: Path) -> bool:
    if not isinstance(filename, str):
        return False
    return path.is_relative_to(filename) or Path(filename).is_relative_to(path.parent)


def _refuse_occupied(final: Path, overwrite: bool) -> None:
    if not final.name:
        raise InputError(f"{final}: is not a directory that can be written; name a new one")
    if final.is_dir() and (overwrite or not any(final.iterdir())):
        return
    if final.exists() or final.is_symlink():
        raise InputError(f"{final}: already exists; remove it or choose another output")


def _move_into_place(staging: Path, final: Path) -> None:
    old = _sibling(final, "old")
    if final.exists():
        final.rename(old)
    staging.rename(final)
    _sync(final.parent)
    shutil.rmtree(old, ignore_errors=True)


def _sibling(final: Path, kind: str) -> Path:
    host = socket.gethostname()
    return final.parent / f".{final.name}.{kind}-{host}-{os.getpid()}-{secrets.token_hex(4)}"


def _remove_stale(final: Path) -> None:
    """Remove what dead processes of this machine left beside `final`; put back what they moved."""
    for path in final.parent.iterdir():
        match = _STAGING_NAME.match(path.name)
        if match is None or match["final"] != final.name or match["host"] != socket.gethostname():
            continue
        if _alive(int(match["pid"])):
            continue
        if match["kind"] == "old" and not final.exists():
            path.rename(final)
        elif path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
