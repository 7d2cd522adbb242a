"""From a local directory or file to blobs."""

import fcntl
import hashlib
import os
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path
from tempfile import mkstemp
from typing import IO

from coldpress.loading import default_name
from coldpress.store.download import CHUNK_BYTES, OnBytes, keep_blob
from coldpress.store.files import ENGINES, PICKLES, TEXT, WEIGHTS, check_paths, check_weights
from coldpress.store.local import Entry, Store, StoredFile
from coldpress.store.names import ModelName, parse_name
from coldpress.store.pull import SPARE_BYTES, OnProgress
from compile.manifest import MANIFEST, read_manifest
from quant.format.errors import InputError
from quant.format.staging import disk_errors, free_bytes, is_staging

_FICLONE = 0x40049409
"""linux/fs.h: let a file share another one's bytes until either is written to."""


def take_in(
    store: Store,
    path: Path,
    name: ModelName | None,
    *,
    link: bool = False,
    on_progress: OnProgress | None = None,
) -> Entry:
    """Copy a model's files into the store, without taking disk where the file system can share it.

    An artifact's files must be what its manifest says. link: share files with `path` for good;
    they become read-only. Raises InputError naming the file for what cannot be read or taken.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or directory; name a model, hf:... or oci://...")
    if is_staging(path.resolve()):
        raise InputError(f"{path}: was left by an interrupted run; delete it and run again")
    files = _files(path)
    check_paths(files, str(path))
    name = name or parse_name(default_name(path))
    total, done = sum(file.stat().st_size for file in files.values()), 0
    if not link and free_bytes(store.root) < total + SPARE_BYTES:
        raise InputError(
            f"{path} has {total:,} bytes, but {free_bytes(store.root):,} are free at {store.root}; "
            "free some space, share the files with --link, or set COLDPRESS_HOME"
        )
    promised = _promised(path)
    stored = []
    with store.in_use(), disk_errors(store.root):
        for wanted, file in sorted(files.items()):

            def advance(count: int, wanted: str = wanted) -> None:
                nonlocal done
                done += count
                if on_progress is not None:
                    on_progress(done, total, wanted)

            taken = _take(store, wanted, file, link, advance)
            if promised.get(wanted, taken.sha256) != taken.sha256:
                raise InputError(
                    f"{file}: is not what the artifact's manifest says; build it again, or see "
                    "coldpress verify"
                )
            stored.append(taken)
        return store.add(name, str(path.resolve()), stored)


def _files(path: Path) -> dict[str, Path]:
    """Files to take by their names in the store; links are followed, since caches consist of them.
    Of an artifact, what its manifest lists; of other directories, what is hidden, pickled, in a
    folder or of no use to us stays behind."""
    if not path.is_dir():
        _check_regular(path)
        check_weights([path.name], str(path))
        return {path.name: path}
    listed = _promised(path)
    if listed:
        files = {name: path / name for name in (*listed, MANIFEST)}
    else:
        wanted = (*WEIGHTS, *ENGINES, *TEXT, *PICKLES)
        files = {
            file.name: file
            for file in sorted(path.iterdir())
            if not file.is_dir() and not file.name.startswith(".")
            if file.name.lower().endswith(wanted)
        }
    check_weights(files, str(path))
    for file in files.values():
        _check_regular(file)
    _check_lone(files, path)
    return {name: file for name, file in files.items() if not name.lower().endswith(PICKLES)}


def _check_lone(files: Iterable[str], path: Path) -> None:
    names = [name for name in files if name.lower().endswith((*WEIGHTS, *ENGINES))]
    if len(names) > 1 and all(name.lower().endswith(".gguf") for name in names):
        raise InputError(f"{path}: holds several models; name one of {', '.join(sorted(names))}")


def _check_regular(file: Path) -> None:
    if not file.exists():
        raise InputError(f"{file}: is missing; the artifact is not whole")
    if not stat.S_ISREG(file.stat().st_mode):
        raise InputError(f"{file}: is not a regular file; refused")


def _promised(path: Path) -> Mapping[str, str]:
    """Digests by file name, as an artifact's manifest has them."""
    if not (path / MANIFEST).is_file():
        return {}
    return {name: entry.sha256 for name, entry in read_manifest(path).files.items()}


def _take(store: Store, name: str, file: Path, link: bool, on_bytes: OnBytes) -> StoredFile:
    store.partial.mkdir(parents=True, exist_ok=True)
    handle, aside_name = mkstemp(dir=store.partial, prefix="local-")
    aside = Path(aside_name)
    try:
        with os.fdopen(handle, "wb") as out, file.open("rb") as source:
            shared = not link and _clone(source, out)
            digest, size = hashlib.sha256(), 0
            while chunk := source.read(CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
                on_bytes(len(chunk))
                if not link and not shared:
                    out.write(chunk)
        if link:
            aside.unlink()
            os.link(file.resolve(), aside)
        return keep_blob(store, aside, name, digest.hexdigest(), size)
    except OSError as error:
        aside.unlink(missing_ok=True)
        if link:
            raise InputError(
                f"{file}: cannot be shared with {store.root} ({error.strerror}); leave out --link"
            ) from error
        raise
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def _clone(source: IO[bytes], out: IO[bytes]) -> bool:
    try:
        fcntl.ioctl(out.fileno(), _FICLONE, source.fileno())
    except OSError:
        return False
    return True
