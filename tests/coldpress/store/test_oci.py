"""Models to a registry and back, and registries that lie."""

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from coldpress.store.local import Store
from coldpress.store.names import ModelName
from coldpress.store.pull import pull
from coldpress.store.registry import FILE_TYPE, TITLE, parse_registry_source, push
from compile.manifest import write_manifest
from quant.format.errors import InputError
from tests.coldpress.store.fake_registry import FakeRegistry
from tests.coldpress.store.http_server import Host, http_host


@contextmanager
def serving(registry: FakeRegistry) -> Iterator[Host]:
    with http_host(registry.answer) as host:
        registry.url = host.url
        yield host


@pytest.fixture
def model(tmp_path: Path) -> Path:
    directory = tmp_path / "model"
    (directory / "more").mkdir(parents=True)
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"weights" * 1000)
    (directory / "more" / "notes.json").write_text("[]")
    write_manifest(directory, "checkpoint")
    return directory


def test_a_model_goes_to_a_registry_and_comes_back(tmp_path: Path, model: Path) -> None:
    ours, theirs = Store(tmp_path / "ours"), Store(tmp_path / "theirs")
    entry = pull(str(model), store=ours)
    registry = FakeRegistry()
    with serving(registry) as host:
        address = push(ours, entry, f"oci://{host.netloc}/team/model:v1")
        back = pull(f"oci://{host.netloc}/team/model:v1", store=theirs)
        pinned = pull(address, "pinned", store=theirs)
        assert (back.name, back.source) == (ModelName("model"), address)
        assert back.files == pinned.files == entry.files and back.digest == entry.digest
        stored = theirs.directory(back)
        assert (stored / "more" / "notes.json").read_text() == "[]"
        sent = [asked.path for asked in host.asked if asked.method == "PUT"]
        push(ours, entry, f"oci://{host.netloc}/team/model:v2")
        again = [asked.path for asked in host.asked if asked.method == "PUT"]
        assert len(again) == len(sent) + 1, "files that are there are not sent again"
        assert registry.manifests["v1"] == registry.manifests["v2"]


def test_a_password_goes_to_the_registry_alone(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLDPRESS_REGISTRY_AUTH", "me:secret")
    secret = base64.b64encode(b"me:secret").decode()
    store = Store(tmp_path / "store")
    entry = pull(str(model), store=store)
    with serving(FakeRegistry(secret)) as host:
        push(store, entry, f"oci://{host.netloc}/model")
        assert pull(f"oci://{host.netloc}/model", "back", store=store).files == entry.files
    with serving(FakeRegistry(secret)) as stranger:
        registry = FakeRegistry(secret, realm=f"{stranger.url}/token")
        with serving(registry) as host, pytest.raises(InputError, match="which is another host"):
            pull(f"oci://{host.netloc}/model", "other", store=store)
        assert stranger.asked == []
        assert all("authorization" not in asked.headers for asked in host.asked)
    monkeypatch.setenv("COLDPRESS_REGISTRY_AUTH", "me:wrong")
    with (
        serving(FakeRegistry(secret)) as host,
        pytest.raises(InputError, match=r"answered 401 to GET /token \(wrong\)"),
    ):
        pull(f"oci://{host.netloc}/model", "other", store=store)


def changed(registry: FakeRegistry, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads(registry.manifests["latest"])
    change(manifest)
    registry.manifests["latest"] = json.dumps(manifest).encode()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (
            lambda m: m["layers"][0]["annotations"].update({TITLE: "../../x.json"}),
            "is not one that",
        ),
        (lambda m: m["layers"][0]["annotations"].update({TITLE: "/etc/x.json"}), "is not one that"),
        (lambda m: m["layers"][0]["annotations"].update({TITLE: 7}), "not named by its SHA-256"),
        (lambda m: m["layers"][0].update(digest="sha256:../../x"), "not named by its SHA-256"),
        (lambda m: m["layers"][0].update(digest="md5:" + "0" * 32), "not named by its SHA-256"),
        (lambda m: m["layers"][0].update(size=-1), "comes without a size"),
        (lambda m: m["layers"][0].update(size="7"), "comes without a size"),
        (lambda m: m["layers"][0].update(size=10**15), r"needs 1,0\d+,.* bytes more, but"),
        (lambda m: m["layers"][0].update(size=1), "is larger than the 1 bytes"),
        (lambda m: m["layers"][0].pop("annotations"), "has no name, size or digest"),
        (lambda m: m["layers"][0].update(mediaType="application/x-tar+gzip"), "is no file of a"),
        (lambda m: m["layers"].append(m["layers"][0]), "twice, perhaps in another case"),
        (lambda m: m.update(layers=None), "lists no files"),
        (lambda m: m.update(layers=[]), "holds no weights"),
        (lambda m: m.update(layers=[5]), "has no name, size or digest"),
        (lambda m: m.update(artifactType="application/vnd.ollama"), "is no coldpress model"),
    ],
)
def test_manifests_that_lie_are_refused(
    tmp_path: Path, model: Path, change: Callable[[dict[str, Any]], object], complaint: str
) -> None:
    store, other = Store(tmp_path / "store"), Store(tmp_path / "other")
    entry = pull(str(model), store=store)
    registry = FakeRegistry()
    with serving(registry) as host:
        push(store, entry, f"oci://{host.netloc}/model")
        changed(registry, change)
        with pytest.raises(InputError, match=complaint):
            pull(f"oci://{host.netloc}/model", store=other)
    assert other.entries() == []
    assert not (tmp_path / "x.json").exists() and list(other.root.glob("*/*.json")) == []


def test_a_file_that_is_another_is_refused(tmp_path: Path, model: Path) -> None:
    store, other = Store(tmp_path / "store"), Store(tmp_path / "other")
    entry = pull(str(model), store=store)
    registry = FakeRegistry()
    with serving(registry) as host:
        address = push(store, entry, f"oci://{host.netloc}/model")
        whole = dict(registry.blobs)
        digest = next(d for d, data in whole.items() if data.startswith(b"weights"))
        registry.blobs[digest] = bytes(7000)
        with pytest.raises(InputError, match="is not what was promised"):
            pull(f"oci://{host.netloc}/model", store=other)
        assert other.entries() == []
        registry.blobs = whole
        registry.manifests[address.rpartition("@")[2]] = b"{}"
        with pytest.raises(InputError, match="is not the one asked for"):
            pull(address, store=other)
        with pytest.raises(InputError, match=r"answered 404 to GET .* \(not known here\)"):
            pull(f"oci://{host.netloc}/model:v9", store=other)
        changed(registry, lambda m: m["layers"].__delitem__(slice(1, None)))
        assert FILE_TYPE in registry.manifests["latest"].decode()
        with pytest.raises(InputError, match="holds no weights"):
            pull(f"oci://{host.netloc}/model", store=other)


@pytest.mark.parametrize(
    "text", ["oci://", "oci://host", "oci://host/", "oci://host/UPPER", "oci://host/a/../b",
             "oci://host/a:", "oci://user:pw@host/a", "oci://host/a@sha256:x", "oci://h/a?b=c"],
)  # fmt: skip
def test_addresses_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="is not of the form oci://host/repository:tag"):
        parse_registry_source(text)


def test_strangers_are_spoken_to_with_tls() -> None:
    assert parse_registry_source("oci://ghcr.io/a/b").base == "https://ghcr.io/v2/a/b"
    assert parse_registry_source("oci://[::1]:5000/a").base == "http://[::1]:5000/v2/a"
    assert parse_registry_source("oci://h/a", plain_http=True).base == "http://h/v2/a"
    assert parse_registry_source("oci://127.0.0.1.evil.org/a").base.startswith("https://")
