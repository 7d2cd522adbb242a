"""pull, list, run, push and rm on the command line, and the same from Python."""

from pathlib import Path
from typing import Any

import pytest

import coldpress
from coldpress.cli import run
from quant.format.errors import InputError
from tests.coldpress.conftest import Run
from tests.coldpress.store.fake_registry import FakeRegistry
from tests.coldpress.store.http_server import http_host


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("COLDPRESS_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_stored_model_is_used_by_its_name(tiny_gguf: Path, run_json: Run, home: Path) -> None:
    assert run_json("list") == {"store": str(home / "store"), "bytes": 0, "models": []}
    pulled = run_json("pull", tiny_gguf, "--name", "org/tiny:q8")
    assert pulled["name"] == "org/tiny:q8" and "model.gguf" in pulled["files"]
    (model,) = run_json("list")["models"]
    assert (model["name"], model["bytes"]) == ("org/tiny:q8", pulled["bytes"])
    args = ("press", "--raw", "--max-tokens", "4", "--threads", "1")
    stored: dict[str, Any] = run_json("run", "org/tiny:q8", *args)
    assert stored["text"] == run_json("run", tiny_gguf, *args)["text"]
    assert run_json("verify", "org/tiny:q8", "--no-logits")["passed"]
    assert run_json("inspect", "org/tiny:q8") == run_json("inspect", model["path"])
    removed = run_json("rm", "org/tiny:q8")
    assert removed == {"removed": ["org/tiny:q8"], "bytes_freed": pulled["bytes"]}
    assert "org/tiny:q8" in run_json("run", "org/tiny:q8", *args, code=2)["error"]


def test_the_same_from_python(tiny_gguf: Path) -> None:
    assert coldpress.pull(tiny_gguf, "tiny")["name"] == "tiny"
    with coldpress.LLM("tiny", threads=1) as model, coldpress.LLM(tiny_gguf, threads=1) as same:
        assert model.generate("press", max_tokens=4) == same.generate("press", max_tokens=4)
    with pytest.raises(InputError, match="nothing: no such file"):
        coldpress.LLM("nothing")


def test_a_model_travels_through_a_registry(tiny_gguf: Path, run_json: Run) -> None:
    registry = FakeRegistry()
    with http_host(registry.answer) as host:
        run_json("pull", tiny_gguf, "--name", "tiny")
        pushed = run_json("push", "tiny", f"oci://{host.netloc}/team/tiny:v1")
        assert pushed["address"].startswith(f"oci://{host.netloc}/team/tiny@sha256:")
        run_json("rm", "tiny")
        back = run_json("pull", f"oci://{host.netloc}/team/tiny:v1")
        assert (back["name"], back["source"]) == ("tiny", pushed["address"])
    assert run_json("verify", "tiny", "--no-logits")["passed"]


def test_people_see_a_table(tiny_gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list"]) == 0
    assert "no models yet; coldpress pull brings one" in capsys.readouterr().out
    assert run(["pull", str(tiny_gguf), "--name", "tiny"]) == 0
    assert capsys.readouterr().out.startswith("tiny: ")
    assert run(["list"]) == 0
    assert str(tiny_gguf) in capsys.readouterr().out
    assert run(["rm", "tiny", "other"]) == 2
    assert "the store has no 'other'; it has: tiny" in capsys.readouterr().err
    assert run(["rm", "tiny"]) == 0
    assert capsys.readouterr().out.startswith("removed tiny; ")
