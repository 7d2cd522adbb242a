"""Nothing half-written is found under its final name, whatever ends the writer."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quant.format import staging
from quant.format.checkpoint import open_checkpoint
from quant.format.errors import InputError
from quant.format.staging import (
    free_bytes,
    is_staging,
    require_free_bytes,
    staged_directory,
    write_file_atomically,
)


def test_the_directory_appears_whole(tmp_path: Path) -> None:
    final = tmp_path / "new" / "out"
    with staged_directory(final) as directory:
        (directory / "a").write_text("1")
        assert directory.parent == final.parent
        assert not final.exists()
        assert is_staging(directory)
    assert [path.name for path in final.parent.iterdir()] == ["out"]
    assert (final / "a").read_text() == "1"
    assert not is_staging(final)


def test_an_empty_directory_may_be_filled(tmp_path: Path) -> None:
    final = tmp_path / "out"
    final.mkdir()
    with staged_directory(final) as directory:
        (directory / "a").touch()
    assert (final / "a").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_exception_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), staged_directory(tmp_path / "out") as directory:
        (directory / "a").touch()
        raise KeyError
    assert not list(tmp_path.iterdir())


def occupied_directory(final: Path) -> None:
    final.mkdir()
    (final / "old").write_text("old")


def occupied_file(final: Path) -> None:
    final.write_text("old")


def dangling_link(final: Path) -> None:
    final.symlink_to("nowhere")


@pytest.mark.parametrize("occupy", [occupied_directory, occupied_file, dangling_link])
def test_something_there_is_refused_before_any_work(
    tmp_path: Path, occupy: Callable[[Path], None]
) -> None:
    final = tmp_path / "out"
    occupy(final)
    with pytest.raises(InputError, match="already exists"), staged_directory(final):
        pytest.fail("the block must not run")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_something_that_appears_meanwhile_is_kept(tmp_path: Path) -> None:
    final = tmp_path / "out"
    with pytest.raises(InputError, match="already exists"), staged_directory(final):
        occupied_directory(final)
    assert (final / "old").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_overwrite_replaces_the_whole_directory(tmp_path: Path) -> None:
    final = tmp_path / "out"
    occupied_directory(final)
    with staged_directory(final, overwrite=True) as directory:
        (directory / "new").touch()
        assert (final / "old").exists()
    assert [path.name for path in final.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_overwrite_never_replaces_a_file(tmp_path: Path) -> None:
    occupied_file(tmp_path / "out")
    with (
        pytest.raises(InputError, match="already exists"),
        staged_directory(tmp_path / "out", overwrite=True),
    ):
        pytest.fail("the block must not run")


def test_full_disk_is_a_sentence(tmp_path: Path) -> None:
    final = tmp_path / "out"
    with pytest.raises(InputError, match="out: the disk is full"), staged_directory(final):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not list(tmp_path.iterdir())


def test_a_real_full_disk(tmp_path: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with (
        pytest.raises(InputError, match="the disk is full"),
        staged_directory(tmp_path / "out"),
        Path("/dev/full").open("wb", buffering=0) as full,
    ):
        full.write(b"x")


def test_a_failure_of_somebody_else_is_not_blamed_on_the_disk(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), staged_directory(tmp_path / "out"):
        raise PermissionError(errno.EACCES, "no", "/somewhere/else")


def test_a_file_in_the_way_of_a_parent(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"), staged_directory(tmp_path / "file" / "x"):
        pytest.fail("the block must not run")


KILLED = """
import json, os, signal, sys
from pathlib import Path
import numpy as np
from quant.format.safetensors_writer import ShardedWriter
from quant.format.staging import staged_directory

with staged_directory(Path(sys.argv[1])) as directory:
    with ShardedWriter(directory) as writer:
        writer.add("a.weight", np.zeros((2, 2), np.float32))
    (directory / "config.json").write_text(json.dumps({"model_type": "llama"}))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_while_writing_leaves_nothing_that_loads(tmp_path: Path) -> None:
    """Killed at the worst moment: every file is complete, only the rename is missing."""
    final = tmp_path / "out"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(final)], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not final.exists()
    (left,) = tmp_path.iterdir()
    with pytest.raises(InputError, match="interrupted"):
        open_checkpoint(left)
    with staged_directory(final) as directory:
        (directory / "a").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def sibling_of(final: Path, kind: str, pid: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: pid)
        return staging._sibling(final, kind)


def test_killed_between_the_two_renames_of_an_overwrite(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "out"
    old = sibling_of(final, "old", dead_pid(), monkeypatch)
    occupied_directory(old)
    with pytest.raises(InputError, match="already exists"), staged_directory(final):
        pytest.fail("the block must not run")
    assert (final / "old").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_living_writer_and_other_names_are_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    final = tmp_path / "out"
    living = sibling_of(final, "partial", os.getpid(), monkeypatch)
    other = sibling_of(tmp_path / "other", "partial", dead_pid(), monkeypatch)
    dead = sibling_of(final, "partial", dead_pid(), monkeypatch)
    for path in (living, other, dead):
        path.mkdir()
    with staged_directory(final):
        assert living.exists()
        assert other.exists()
        assert not dead.exists()


def test_write_file_atomically(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_file_atomically(path, b"old")
    write_file_atomically(path, b"new")
    assert path.read_bytes() == b"new"

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"a\.json: the disk is full"):
        write_file_atomically(path, b"newer")
    assert path.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_free_bytes_of_a_path_that_does_not_exist_yet(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b"
    assert free_bytes(path) > 0
    require_free_bytes(path, 1)
    with pytest.raises(InputError, match=r"b: writing needs 1,000,000,000,000,000,000 bytes"):
        require_free_bytes(path, 10**18)
