"""Manifests: complete, deterministic, and quick to notice any change of a file."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compile.manifest import (
    MANIFEST,
    FileProblem,
    check_files,
    describe_source,
    manifest_bytes,
    read_manifest,
    write_manifest,
)
from quant.format.errors import FileFormatError, InputError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)  # fmt: skip
TABLE = st.dictionaries(st.text(max_size=5), JSON, max_size=3)


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    directory = tmp_path / "artifact"
    (directory / "sub").mkdir(parents=True)
    (directory / "model.gguf").write_bytes(b"weights" * 300_000)
    (directory / "sub" / "ü.json").write_text("{}")
    (directory / "empty").touch()
    return directory


def test_every_file_is_listed_with_its_digest(artifact: Path) -> None:
    write_manifest(artifact, "gguf", recipe={"name": "x"}, tools={"coldpress": "0.1.0"})
    fields = json.loads((artifact / MANIFEST).read_text("utf-8"))
    assert fields["schema_version"] == 1
    assert fields["kind"] == "gguf"
    expected = {
        path.relative_to(artifact).as_posix(): {
            "bytes": len(path.read_bytes()),
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in artifact.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }
    assert fields["files"] == expected
    assert check_files(artifact, read_manifest(artifact)) == []


def test_the_same_inputs_give_the_same_bytes(artifact: Path) -> None:
    modules = {"b": {"bits": 4}, "a": {"bits": 8}}
    write_manifest(artifact, "gguf", modules=modules)
    first = (artifact / MANIFEST).read_bytes()
    write_manifest(artifact, "gguf", modules=dict(reversed(modules.items())))
    assert (artifact / MANIFEST).read_bytes() == first
    assert b"created" not in first


@given(recipe=st.none() | TABLE, modules=st.none() | TABLE, sources=st.lists(TABLE, max_size=2))
def test_what_is_written_is_read_back(
    tmp_path_factory: pytest.TempPathFactory,
    recipe: dict[str, Any] | None,
    modules: dict[str, Any] | None,
    sources: list[dict[str, Any]],
) -> None:
    directory = tmp_path_factory.mktemp("artifact")
    (directory / "f").write_bytes(b"x")
    written = write_manifest(
        directory, "checkpoint", recipe=recipe, modules=modules, sources=sources, created="now"
    )
    assert manifest_bytes(read_manifest(directory)) == manifest_bytes(written)


def test_missing_extra_and_changed_files_are_found(artifact: Path) -> None:
    manifest = write_manifest(artifact, "gguf")
    (artifact / "empty").unlink()
    (artifact / "new").touch()
    (artifact / "sub" / "ü.json").write_text("[]")
    with (artifact / "model.gguf").open("ab") as file:
        file.write(b"!")
    problems = check_files(artifact, manifest)
    assert problems[:3] == [
        FileProblem("empty", "missing", "the manifest lists it"),
        FileProblem("model.gguf", "changed", "2100001 bytes instead of 2100000"),
        FileProblem("new", "extra", "the manifest does not list it"),
    ]
    assert (problems[3].path, problems[3].problem) == ("sub/ü.json", "changed")
    assert hashlib.sha256(b"[]").hexdigest() in problems[3].detail


def test_progress_counts_every_byte(artifact: Path) -> None:
    heard: list[tuple[int, int, str]] = []
    write_manifest(artifact, "gguf", on_progress=lambda *news: heard.append(news))
    assert heard[-1][:2] == (2_100_002, 2_100_002)
    assert [done for done, _, _ in heard] == sorted(done for done, _, _ in heard)
    assert {name for _, _, name in heard} == {"model.gguf", "sub/ü.json"}


def test_links_and_unwritable_values_are_refused(artifact: Path) -> None:
    with pytest.raises(InputError, match="JSON"):
        write_manifest(artifact, "gguf", recipe={"x": float("nan")})
    assert not (artifact / MANIFEST).exists()
    (artifact / "link").symlink_to(artifact / "empty")
    with pytest.raises(InputError, match=r"link.*symbolic"):
        write_manifest(artifact, "gguf")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"schema_version": 2}, "schema_version 2"),
        ({"kind": None}, "'kind'"),
        ({"surprise": 1}, "'surprise'"),
        ({"recipe": []}, "'recipe'"),
        ({"sources": [1]}, "'sources'"),
        ({"created": 5}, "'created'"),
        ({"files": None}, "'files'"),
        ({"files": {"../x": {"bytes": 1, "sha256": "0" * 64}}}, "outside"),
        ({"files": {"/x": {"bytes": 1, "sha256": "0" * 64}}}, "outside"),
        ({"files": {"x": {"bytes": -1, "sha256": "0" * 64}}}, "malformed"),
        ({"files": {"x": {"bytes": 1}}}, "'x'"),
    ],
)
def test_a_malformed_manifest_is_refused(artifact: Path, change: dict[str, Any], says: str) -> None:
    write_manifest(artifact, "gguf")
    path = artifact / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | change))
    with pytest.raises(FileFormatError, match=says):
        read_manifest(artifact)


@pytest.mark.parametrize("content", [b"", b"not json", b"[]", b"\xff\xfe", b"[" * 100_000])
def test_a_manifest_that_is_no_json_object(tmp_path: Path, content: bytes) -> None:
    (tmp_path / MANIFEST).write_bytes(content)
    with pytest.raises(FileFormatError):
        read_manifest(tmp_path)


def test_a_directory_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_manifest(tmp_path)


def test_sources_are_described_through_links_but_not_hidden_folders(tmp_path: Path) -> None:
    model = tmp_path / "model"
    (model / ".cache").mkdir(parents=True)
    (model / ".cache" / "lock").touch()
    (tmp_path / "blob").write_bytes(b"weights")
    (model / "model.safetensors").symlink_to(tmp_path / "blob")
    entry = {"bytes": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}
    assert describe_source(model) == {"name": "model", "files": {"model.safetensors": entry}}
    assert describe_source(tmp_path / "blob") == {"name": "blob", "files": {"blob": entry}}
    with pytest.raises(InputError, match="no such"):
        describe_source(tmp_path / "nothing")
