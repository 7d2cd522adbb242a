"""Models of a hub: what is chosen of a repository, and a pull from a hub on this machine."""

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from coldpress.store.hub import HubSource, _chosen, find_on_hub, parse_hub_source
from coldpress.store.local import Store
from coldpress.store.pull import pull
from quant.format.errors import InputError
from tests.coldpress.store.http_server import Asked, Reply, http_host, ranged

COMMIT = "c" * 40
FILES = {
    "config.json": b"{}",
    "model.safetensors": b"weights" * 1000,
    "README.md": b"words",
    "pytorch_model.bin": b"pickle",
    "modeling_x.py": b"import os",
}


def hub(files: dict[str, bytes], *, token: str | None = None) -> Any:
    """What answers as the hub does, for one repository `org/model`."""

    def sibling(name: str, data: bytes) -> dict[str, Any]:
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        told = {"rfilename": name, "size": len(data), "blobId": git}
        if name.endswith((".safetensors", ".gguf")):
            sha256 = hashlib.sha256(data).hexdigest()
            told["lfs"] = {"sha256": sha256, "size": len(data), "pointerSize": 130}
        return told

    def answer(asked: Asked) -> Reply:
        if token and asked.headers.get("authorization") != f"Bearer {token}":
            return Reply(401, b"{}", {"X-Error-Code": "RepoNotFound"})
        path = asked.path.partition("?")[0]
        if path in ("/api/models/org/model", "/api/models/org/model/revision/main"):
            siblings = [sibling(name, data) for name, data in files.items()]
            found = {"id": "org/model", "sha": COMMIT, "siblings": siblings}
            return Reply(200, json.dumps(found).encode(), {"Content-Type": "application/json"})
        if path.startswith("/api/models/org/model/revision/"):
            return Reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        name = path.removeprefix(f"/org/model/resolve/{COMMIT}/")
        if name in files:
            return ranged(files[name], asked)
        return Reply(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    return answer


@pytest.fixture(autouse=True)
def _no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)


def test_a_model_is_pulled_without_what_runs_code(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with http_host(hub(FILES)) as host:
        entry = pull("hf:org/model@main", store=store, endpoint=host.url)
        asked = [one.path for one in host.asked if "/resolve/" in one.path]
    assert asked == [f"/org/model/resolve/{COMMIT}/{name}" for name in list(FILES)[:2]]
    assert (str(entry.name), entry.source) == ("org/model", f"hf:org/model@{COMMIT}")
    assert (store.directory(entry) / "model.safetensors").read_bytes() == b"weights" * 1000


def test_one_gguf_file_of_many(tmp_path: Path) -> None:
    files = {"x-q4.gguf": b"GGUF4", "x-q8.gguf": b"GGUF8", "config.json": b"{}"}
    store = Store(tmp_path / "store")
    with http_host(hub(files)) as host:
        with pytest.raises(InputError, match=r"several models; name one .* x-q4\.gguf, x-q8\.gguf"):
            pull("hf:org/model", store=store, endpoint=host.url)
        entry = pull("hf:org/model:x-q8.gguf", store=store, endpoint=host.url)
        with pytest.raises(InputError, match=r"no file 'y\.gguf'; it has: x-q4\.gguf"):
            pull("hf:org/model:y.gguf", store=store, endpoint=host.url)
    assert str(entry.name) == "x-q8" and [file.path for file in entry.files] == ["x-q8.gguf"]


def test_what_the_hub_refuses_is_said(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")

    def failing(source: str) -> str:
        with pytest.raises(InputError) as failed:
            pull(source, store=store, endpoint=host.url)
        return str(failed.value)

    with http_host(hub(FILES)) as host:
        assert "there is no such revision" in failing("hf:org/model@v9")
        assert "no such model, or it needs a token: set HF_TOKEN" in failing("hf:org/other")
    with http_host(hub(FILES, token="t0ken")) as host:
        assert "it needs a token" in failing("hf:org/model")
        found = find_on_hub("hf:org/model", host.url, "t0ken")
        assert {file.headers["Authorization"] for file in found.files} == {"Bearer t0ken"}
    with http_host(hub({"pytorch_model.bin": b"x"})) as host:
        assert "runs code when it is read" in failing("hf:org/model")
    with http_host(lambda asked: Reply(200, b"not json")) as host:
        assert "cannot be asked" in failing("hf:org/model")
    assert "cannot be asked" in failing("hf:org/model"), "nobody listens there any more"
    assert store.entries() == []


def test_hubs_that_lie_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    for change in ({"size": -1}, {"sha256": "../../../x"}, {"sha256": "0" * 64}):

        def answer(asked: Asked, change: dict[str, Any] = change) -> Reply:
            reply: Reply = hub(FILES)(asked)
            if asked.path.startswith("/api/"):
                found = json.loads(reply.body)
                found["siblings"][1]["lfs"].update(change)
                return Reply(200, json.dumps(found).encode(), reply.headers)
            return reply

        with http_host(answer) as host, pytest.raises(InputError, match=r"refused|not what was"):
            pull("hf:org/model", store=store, endpoint=host.url)
    with (
        http_host(hub({**FILES, "..\\x.json": b"{}"})) as host,
        pytest.raises(InputError, match="is not one that we write"),
    ):
        pull("hf:org/model", store=store, endpoint=host.url)
    assert store.entries() == [] and not (tmp_path / "x.json").exists()


def test_what_sources_are() -> None:
    assert parse_hub_source("hf:org/m") == HubSource("org/m")
    assert parse_hub_source("hf:org/m@v1:a/b.gguf") == HubSource("org/m", "v1", "a/b.gguf")
    for text in ("hf:", "hf:/m", "hf:a/b/c", "hf:org/..", "hf:org/m@", "hf:org/m:", "hf:o/m?x"):
        with pytest.raises(InputError, match="is not of the form hf:owner/name"):
            parse_hub_source(text)
    with pytest.raises(InputError, match="refused"):
        parse_hub_source("hf:org/m:../../x.gguf")


def test_what_is_chosen_of_a_repository() -> None:
    whole = HubSource("org/m")
    weights = ["config.json", "model.safetensors", "tokenizer.json"]
    assert _chosen(whole, [*weights, "model.gguf", "onnx/model.onnx"]) == weights
    assert _chosen(whole, ["m.gguf", "README.md", "config.json"]) == ["m.gguf", "config.json"]
    assert _chosen(whole, ["onnx/model.onnx", "onnx/config.json"]) == [
        "onnx/model.onnx", "onnx/config.json",
    ]  # fmt: skip
