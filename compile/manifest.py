"""manifest.json: what an artifact is, where it came from, and the digest of each of its files.

It is written last, so a directory without one is no finished artifact. The same inputs give the
same bytes: keys are sorted, and there is no time in it unless the caller passes one.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from quant.format.errors import FileFormatError, InputError
from quant.format.staging import write_file_atomically

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
MAX_MANIFEST_BYTES = 64 << 20
CHUNK_BYTES = 1 << 20

Progress = Callable[[int, int, str], None]
"""Called with bytes done, bytes in total and the file's name."""


@dataclass(frozen=True)
class FileEntry:
    """Size and lower-case hexadecimal SHA-256 of one file."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """One artifact.

    kind: what the payload is, such as "checkpoint" or "gguf".
    sources, parents: what it was made from, each a table such as `describe_source` returns.
    recipe, calibration, evaluation: what was asked for, shown and measured; empty where not so.
    engine: what a TensorRT engine was built from, by and for; see `compile.engine_file`.
    modules: state of each module by name. tools: version by package name.
    files: every file of the directory but this one, by path with forward slashes.
    """

    kind: str
    files: Mapping[str, FileEntry]
    sources: Sequence[Mapping[str, Any]] = ()
    parents: Sequence[Mapping[str, Any]] = ()
    recipe: Mapping[str, Any] | None = None
    calibration: Mapping[str, Any] | None = None
    modules: Mapping[str, Any] | None = None
    tools: Mapping[str, str] | None = None
    evaluation: Mapping[str, Any] | None = None
    engine: Mapping[str, Any] | None = None
    created: str | None = None
    schema_version: int = SCHEMA_VERSION


@dataclass(frozen=True)
class FileProblem:
    """One way in which a directory is not what its manifest says."""

    path: str
    problem: Literal["missing", "extra", "changed"]
    detail: str


def write_manifest(
    directory: Path,
    kind: str,
    *,
    sources: Sequence[Mapping[str, Any]] = (),
    parents: Sequence[Mapping[str, Any]] = (),
    recipe: Mapping[str, Any] | None = None,
    calibration: Mapping[str, Any] | None = None,
    modules: Mapping[str, Any] | None = None,
    tools: Mapping[str, str] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    engine: Mapping[str, Any] | None = None,
    created: str | None = None,
    on_progress: Progress | None = None,
) -> Manifest:
    """Digest every file of `directory` and write its manifest.json, whole or not at all.

    Raises InputError for a symbolic link, and for values that JSON cannot hold.
    """
    manifest = Manifest(
        kind=kind,
        files=_digest_files(directory, _files_of(directory), on_progress),
        sources=sources,
        parents=parents,
        recipe=recipe,
        calibration=calibration,
        modules=modules,
        tools=tools,
        evaluation=evaluation,
        engine=engine,
        created=created,
    )
    write_file_atomically(directory / MANIFEST, manifest_bytes(manifest))
    return manifest


def manifest_bytes(manifest: Manifest) -> bytes:
    """Canonical UTF-8 JSON; fields that say nothing are left out."""
    fields = {name: value for name, value in asdict(manifest).items() if value is not None}
    try:
        text = json.dumps(fields, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False)
        return f"{text}\n".encode()
    except (TypeError, ValueError) as error:
        raise InputError(f"the manifest cannot be written as JSON: {error}") from error


def read_manifest(directory: Path) -> Manifest:
    """The manifest of an artifact. Raises InputError when there is none, FileFormatError when it
    does not validate, which includes paths that lead out of the directory."""
    path = directory / MANIFEST
    try:
        raw = path.read_bytes() if path.stat().st_size <= MAX_MANIFEST_BYTES else b""
        fields = json.loads(raw)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise FileFormatError(path, "is not JSON, or too long for a manifest") from error
    return _validated(path, fields)


def check_files(
    directory: Path, manifest: Manifest, on_progress: Progress | None = None
) -> list[FileProblem]:
    """Everything in which `directory` differs from its manifest, sorted by path."""
    present = _files_of(directory)
    both = {
        name: path
        for name, path in present.items()
        if name in manifest.files and path.stat().st_size == manifest.files[name].bytes
    }
    found = _digest_files(directory, both, on_progress)
    problems = []
    for name in sorted({*manifest.files, *present}):
        if name not in present:
            problems.append(FileProblem(name, "missing", "the manifest lists it"))
        elif name not in manifest.files:
            problems.append(FileProblem(name, "extra", "the manifest does not list it"))
        elif name not in found:
            size, listed = present[name].stat().st_size, manifest.files[name].bytes
            problems.append(FileProblem(name, "changed", f"{size} bytes instead of {listed}"))
        elif found[name] != manifest.files[name]:
            problems.append(FileProblem(name, "changed", f"sha256 is {found[name].sha256}"))
    return problems


def describe_source(path: Path, on_progress: Progress | None = None) -> dict[str, Any]:
    """Name and digests of a model file or directory, for `sources` and `parents`."""
    files = {path.name: path} if path.is_file() else dict(_visible_files(path))
    entries = _digest_files(path, files, on_progress)
    return {"name": path.name, "files": {name: asdict(entry) for name, entry in entries.items()}}


def file_sha256(path: Path, on_bytes: Callable[[int], None] | None = None) -> str:
    """SHA-256 of a file, read in pieces; `on_bytes` hears the size of each."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            sha.update(chunk)
            if on_bytes is not None:
                on_bytes(len(chunk))
    return sha.hexdigest()


def _digest_files(
    directory: Path, files: Mapping[str, Path], on_progress: Progress | None
) -> dict[str, FileEntry]:
    total, done = sum(path.stat().st_size for path in files.values()), 0
    entries = {}
    for name, path in sorted(files.items()):

        def advance(count: int, name: str = name) -> None:
            nonlocal done
            done += count
            if on_progress is not None:
                on_progress(done, total, name)

        try:
            entries[name] = FileEntry(path.stat().st_size, file_sha256(path, advance))
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    return entries


def _files_of(directory: Path) -> dict[str, Path]:
    """Every file of an artifact but its manifest, which must hold no links."""
    files = {}
    for path in directory.rglob("*"):
        if path.is_symlink():
            raise InputError(f"{path}: an artifact holds no symbolic links; copy the file instead")
        name = path.relative_to(directory).as_posix()
        if path.is_file() and name != MANIFEST:
            files[name] = path
    return files


def _visible_files(directory: Path) -> Iterator[tuple[str, Path]]:
    """Files outside hidden folders; links are followed, because model caches consist of them."""
    if not directory.is_dir():
        raise InputError(f"{directory}: no such file or directory")
    for path in directory.rglob("*"):
        relative = path.relative_to(directory)
        if path.is_file() and not any(part.startswith(".") for part in relative.parts):
            yield relative.as_posix(), path


_TABLES = ("recipe", "calibration", "modules", "tools", "evaluation", "engine")


def _validated(path: Path, fields: Any) -> Manifest:
    if not isinstance(fields, dict):
        raise FileFormatError(path, "is not a JSON object")
    version = fields.get("schema_version")
    if version != SCHEMA_VERSION:
        raise FileFormatError(
            path, f"has schema_version {version!r}; this coldpress reads version {SCHEMA_VERSION}"
        )
    unknown = fields.keys() - Manifest.__dataclass_fields__.keys()
    if unknown:
        raise FileFormatError(path, f"has the unknown key '{min(unknown)}'")
    if not isinstance(fields.get("kind"), str):
        raise FileFormatError(path, "has no 'kind'")
    for key in _TABLES:
        if not isinstance(fields.get(key, {}), dict):
            raise FileFormatError(path, f"'{key}' is not a table")
    for key in ("sources", "parents"):
        entries = fields.get(key, [])
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise FileFormatError(path, f"'{key}' is not a list of tables")
    if not isinstance(fields.get("created", ""), str):
        raise FileFormatError(path, "'created' is not text")
    return Manifest(**{**fields, "files": _validated_files(path, fields.get("files"))})


def _validated_files(path: Path, files: Any) -> dict[str, FileEntry]:
    if not isinstance(files, dict):
        raise FileFormatError(path, "has no table 'files'")
    for name, entry in files.items():
        parts = PurePosixPath(name).parts
        if not parts or name.startswith("/") or ".." in parts or "\\" in name or "\0" in name:
            raise FileFormatError(path, f"lists {name!r}, which lies outside the artifact")
        if not isinstance(entry, dict) or entry.keys() != {"bytes", "sha256"}:
            raise FileFormatError(path, f"the entry of {name!r} needs bytes and sha256 alone")
        size, sha = entry["bytes"], entry["sha256"]
        if type(size) is not int or size < 0 or not isinstance(sha, str) or len(sha) != 64:
            raise FileFormatError(path, f"the entry of {name!r} is malformed")
    return {name: FileEntry(**entry) for name, entry in files.items()}
