"""Names, references, and what is left on the disk after each step."""

import hashlib
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldpress.store.files import check_path, check_paths
from coldpress.store.local import Store
from coldpress.store.names import ModelName, find_name, parse_name
from coldpress.store.pull import pull
from coldpress.store.resolve import resolve
from compile.manifest import write_manifest
from quant.format.errors import FileFormatError, InputError


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"weights" * 1000)
    (directory / "README.md").write_text("words")
    return directory


def blobs(store: Store) -> set[str]:
    return {path.name for path in (store.root / "blobs").glob("*")}


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def test_a_directory_is_pulled_found_and_removed(store: Store, model: Path) -> None:
    done: list[tuple[int, int, str]] = []
    entry = pull(str(model), store=store, on_progress=lambda *args: done.append(args))
    assert (str(entry.name), entry.bytes) == ("model", 7002)
    assert done[-1] == (7002, 7002, "model.safetensors")
    assert [file.path for file in entry.files] == ["config.json", "model.safetensors"]
    assert blobs(store) == {sha256(b"{}"), sha256(b"weights" * 1000)}
    name, path = resolve("model", store)
    assert (name, path.name) == ("model", "model") and path == store.directory(entry)
    assert (path / "model.safetensors").read_bytes() == b"weights" * 1000
    assert store.entries() == [entry]
    store.remove(entry.name)
    assert store.collect() == 7002
    assert blobs(store) == set() and not path.exists()
    with pytest.raises(InputError, match="the store has no 'model'; it is empty"):
        store.remove(entry.name)


def test_what_two_models_share_lies_there_once_and_stays_for_the_other(
    store: Store, model: Path
) -> None:
    one = pull(str(model), "one", store=store)
    two = pull(str(model), "org/one:v2", store=store)
    assert one.digest == two.digest and len(blobs(store)) == 2
    assert store.directory(one) == store.directory(two)
    (model / "config.json").write_text('{"a": 1}')
    pull(str(model), "one", store=store)
    assert len(blobs(store)) == 3
    assert store.collect() == 0, "the old configuration is that of org/one:v2"
    store.remove(two.name)
    assert store.collect() == 2 and len(blobs(store)) == 2
    assert (resolve("one", store)[1] / "config.json").read_text() == '{"a": 1}'


def test_the_source_may_change_afterwards_unless_it_is_shared(store: Store, model: Path) -> None:
    entry = pull(str(model), store=store)
    (model / "config.json").write_text("changed")
    assert (store.directory(entry) / "config.json").read_text() == "{}"
    linked = pull(str(model), "linked", store=store, link=True)
    stored = store.directory(linked) / "config.json"
    assert stored.stat().st_ino == (model / "config.json").stat().st_ino
    assert stored.stat().st_mode & 0o222 == 0, "a file that is shared must not be written to"


def test_a_file_alone_and_onnx_which_is_read_from_files_with_one_name(
    store: Store, tmp_path: Path
) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    assert str(pull(str(tmp_path / "tiny.gguf"), store=store).name) == "tiny"
    (tmp_path / "onnx").mkdir()
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"graph")
    stored = store.directory(pull(str(tmp_path / "onnx"), store=store)) / "model.onnx"
    assert stored.read_bytes() == b"graph" and stored.stat().st_nlink == 1


def test_what_cannot_be_taken_is_refused(store: Store, tmp_path: Path, model: Path) -> None:
    with pytest.raises(InputError, match="no such file or directory; name a model, hf:"):
        pull(str(tmp_path / "none"), store=store)
    with pytest.raises(InputError, match="not a source that we know; use a path, hf: or oci:"):
        pull("https://example.org/model.gguf", store=store)
    with pytest.raises(InputError, match="'a b' cannot be a name in the store; use letters"):
        pull(str(model), "a b", store=store)
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"pytorch_model\.bin, which runs code when it is read"):
        pull(str(model), store=store)
    (model / "pytorch_model.bin").unlink()
    with pytest.raises(InputError, match="holds no weights"):
        pull(str(model), store=store)
    os.mkfifo(model / "model.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors: is not a regular file"):
        pull(str(model), store=store)
    (model / "model.safetensors").unlink()
    (model / "folder").mkdir()
    (model / "folder" / "model.safetensors").write_bytes(b"another model")
    with pytest.raises(InputError, match="holds no weights"):
        pull(str(model), store=store)
    for name in ("a.gguf", "b.gguf"):
        (model / name).write_bytes(b"GGUF")
    with pytest.raises(InputError, match=r"holds several models; name one of a\.gguf, b\.gguf"):
        pull(str(model), store=store)
    assert store.entries() == []


def test_an_artifact_must_be_what_its_manifest_says(store: Store, model: Path) -> None:
    write_manifest(model, "checkpoint")
    assert len(pull(str(model), store=store).files) == 4, "with what else the manifest lists"
    (model / "config.json").write_text("[]")
    with pytest.raises(InputError, match=r"config\.json: is not what the artifact's manifest says"):
        pull(str(model), "changed", store=store)
    (model / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json: is missing; the artifact is not whole"):
        pull(str(model), "changed", store=store)
    assert store.find(ModelName("changed")) is None


def test_nothing_is_taken_that_does_not_fit_the_disk(
    store: Store, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("coldpress.store.take_in.free_bytes", lambda path: 7002 + (256 << 20) - 1)
    with pytest.raises(InputError, match=r"has 7,002 bytes, but 268,\d+,\d+ are free at"):
        pull(str(model), store=store)
    pull(str(model), store=store, link=True)


READ_ONLY = """
mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" || exit 77
exec "$@"
"""
READER = """
import sys
from pathlib import Path
from coldpress.store.local import Store
from coldpress.store.pull import pull
from coldpress.store.resolve import resolve
from quant.format.errors import InputError
store = Store(Path(sys.argv[1]))
assert (resolve("model", store)[1] / "config.json").read_text() == "{}"
try:
    pull(sys.argv[2], store=store)
except InputError as refusal:
    print(refusal)
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="util-linux is not installed")
def test_a_store_that_cannot_be_written_to_is_read(store: Store, model: Path) -> None:
    """A13, with a file system that is really read-only: even root may not write there."""
    pull(str(model), store=store)
    (model / "config.json").write_text('{"a": 1}')
    mounted = ("unshare", "-rm", "sh", "-c", READ_ONLY, str(store.root))
    reading = (sys.executable, "-c", READER, str(store.root), str(model))
    done = subprocess.run([*mounted, *reading], capture_output=True, text=True, check=False)
    if done.returncode in (1, 77) and "Traceback" not in done.stderr:
        pytest.skip(f"no read-only mounts for tests on this machine: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{store.root}: cannot write there (Read-only file system)\n"


def test_a_damaged_reference_is_named(store: Store, model: Path) -> None:
    pull(str(model), store=store)
    (path,) = (store.root / "refs").rglob("*.json")
    whole = path.read_text()
    for text in ("", "{", "[]", whole.replace("config.json", "../config.json"),
                 whole.replace(sha256(b"{}"), "../../x"), whole.replace('"latest"', '"../x"'),
                 whole.replace('"schema_version": 1', '"schema_version": 2')):  # fmt: skip
        path.write_text(text)
        with pytest.raises((FileFormatError, InputError), match=r"latest\.json"):
            store.entries()


def test_nothing_is_collected_while_something_is_pulled(store: Store, model: Path) -> None:
    pull(str(model), store=store)
    store.remove(ModelName("model"))
    with store.in_use():
        assert store.collect() is None
    assert store.collect() == 7002


def test_a_pull_that_is_killed_leaves_nothing_that_loads(store: Store, model: Path) -> None:
    program = textwrap.dedent(
        """
        import os, signal, sys
        from pathlib import Path
        from coldpress.store import local
        from coldpress.store.pull import pull
        local.write_file_atomically = lambda *args: os.kill(os.getpid(), signal.SIGKILL)
        pull(sys.argv[1], store=local.Store(Path(sys.argv[2])))
        """
    )
    command = [sys.executable, "-c", program, str(model), str(store.root)]
    done = subprocess.run(command, cwd=Path(__file__).parents[3], timeout=60)
    assert done.returncode == -9
    assert len(blobs(store)) == 2, "it was killed when all but the reference was there"
    assert store.entries() == []
    with pytest.raises(InputError, match="model: no such file or directory, and the store has no"):
        resolve("model", store)
    assert store.collect() == 7002
    assert pull(str(model), store=store).bytes == 7002


def test_what_names_are() -> None:
    assert parse_name("smollm2") == ModelName("smollm2", "latest")
    assert parse_name("org/smollm2:q4") == ModelName("org/smollm2", "q4")
    assert str(ModelName("a", "latest")) == "a" and str(ModelName("a", "b")) == "a:b"
    for text in ("", ".", "..", "a/..", "/a", "a//b", "a:", "a:b:c", "-a", "a" * 200, "a\n", "a%b"):
        assert find_name(text) is None, text


@given(st.text("aZ0._-/:% \n", max_size=12))
@settings(max_examples=25, deadline=None)
def test_a_name_is_its_own_text(text: str) -> None:
    name = find_name(text)
    if name is not None:
        assert text in (str(name), f"{name.name}:{name.tag}")
        assert ".." not in name.name.split("/") and "/" not in name.tag


@pytest.mark.parametrize(
    "path", ["", ".", "..", "../x", "/x", "a/../x", "a//x", "a\\x", "a\0", "x\n", "~/x", "C:x",
             ".git/config", "a/.x", "x.", "x ", "a/b/c/d/e/f", "x" * 300, "\u202ex"],
)  # fmt: skip
def test_paths_that_lead_elsewhere_are_refused(path: str) -> None:
    with pytest.raises(InputError, match="is not one that we write; refused"):
        check_path(path, "hf:a/b")


def test_paths_that_are_the_same_are_refused() -> None:
    check_paths(["a/x.json", "a/y.json", "x.json"], "here")
    with pytest.raises(InputError, match=r"has 'X\.json' twice, perhaps in another case"):
        check_paths(["x.json", "X.json"], "here")
    with pytest.raises(InputError, match=r"'x\.json/y' lies below a file"):
        check_paths(["x.json", "x.json/y"], "here")
