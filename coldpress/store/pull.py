"""Bring a model into the store, from wherever it is."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coldpress.store.download import RemoteFile, fetch_file
from coldpress.store.files import check_paths, check_weights
from coldpress.store.local import Entry, Store
from coldpress.store.names import ModelName, parse_name
from quant.format.errors import InputError
from quant.format.staging import free_bytes

OnProgress = Callable[[int, int, str], None]
"""Told bytes done, bytes in total and the file."""

SPARE_BYTES = 256 << 20
"""Left free on the disk for everybody else."""


@dataclass(frozen=True)
class Remote:
    """A model elsewhere. source: its address, pinned to the revision that was found. name: what
    it is called unless the user says otherwise."""

    source: str
    name: str
    files: Sequence[RemoteFile]


def pull(
    source: str,
    name: str | None = None,
    *,
    store: Store | None = None,
    link: bool = False,
    plain_http: bool = False,
    endpoint: str | None = None,
    on_progress: OnProgress | None = None,
) -> Entry:
    """Bring `source` into the store and give it `name`, which stands for it from then on.

    source: a directory, a file, `hf:owner/name[@revision][:file]`, or `oci://host/repository:tag`.
    name: its own by default. link: share a local file instead of copying it. plain_http: speak to
    a registry without TLS, as to one on this machine. endpoint: of the Hugging Face hub.

    InputError for a model that cannot be had, does not fit on the disk, holds no weights that are
    safe to read, or is not what it claims to be; nothing of it can be loaded then.
    """
    store = store or Store()
    wanted = None if name is None else parse_name(name)
    if source.startswith("hf:"):
        from coldpress.store.hub import find_on_hub

        return _fetch(store, find_on_hub(source, endpoint), wanted, on_progress)
    if source.startswith("oci://"):
        from coldpress.store.registry import find_in_registry

        return _fetch(store, find_in_registry(source, plain_http), wanted, on_progress)
    if "://" in source:
        raise InputError(f"'{source}' is not a source that we know; use a path, hf: or oci://")
    from coldpress.store.take_in import take_in

    return take_in(store, Path(source), wanted, link=link, on_progress=on_progress)


def report_of(entry: Entry) -> dict[str, Any]:
    """The JSON of `coldpress pull`."""
    return {
        "name": str(entry.name),
        "source": entry.source,
        "bytes": entry.bytes,
        "files": [file.path for file in entry.files],
    }


def _fetch(
    store: Store, remote: Remote, name: ModelName | None, on_progress: OnProgress | None
) -> Entry:
    check_paths((file.path for file in remote.files), remote.source)
    check_weights((file.path for file in remote.files), remote.source)
    name = name or parse_name(remote.name)
    total, done = sum(file.bytes for file in remote.files), 0
    _check_room(store, remote)
    stored = []
    with store.in_use():
        for file in remote.files:

            def advance(count: int, path: str = file.path) -> None:
                nonlocal done
                done += count
                if on_progress is not None:
                    on_progress(done, total, path)

            stored.append(fetch_file(store, file, advance))
        return store.add(name, remote.source, stored)


def _check_room(store: Store, remote: Remote) -> None:
    missing = 0
    for file in remote.files:
        if file.sha256 is None or not store.blob(file.sha256).is_file():
            partial = store.partial / file.key
            missing += file.bytes - (partial.stat().st_size if partial.is_file() else 0)
    free = free_bytes(store.root)
    if missing and free < missing + SPARE_BYTES:
        raise InputError(
            f"{remote.source} needs {missing:,} bytes more, but {free:,} are free at {store.root}; "
            "free some space, or put the store elsewhere with COLDPRESS_HOME"
        )
