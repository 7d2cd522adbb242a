"""A container's limits count, not the host's size."""

import ctypes
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

import runtime.machine
from runtime.machine import available_memory_bytes, available_threads, give_back_freed

CORES = 8


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """8 cores, 1000 kB free, and no cgroup limits; the folder that holds proc and cgroup."""
    (tmp_path / "proc" / "self").mkdir(parents=True)
    (tmp_path / "cgroup").mkdir()
    (tmp_path / "proc" / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  1000 kB\n")
    monkeypatch.setattr(runtime.machine, "PROC", tmp_path / "proc")
    monkeypatch.setattr(runtime.machine, "CGROUP_ROOT", tmp_path / "cgroup")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(CORES)), raising=False)
    return tmp_path


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


def test_without_limits_the_host_counts(machine: Path) -> None:
    assert available_threads() == CORES
    assert available_memory_bytes() == 1000 * 1024


@pytest.mark.parametrize("quota, threads", [("250000", 2), ("50000", 1), ("max", CORES)])
def test_a_quota_of_version_2(machine: Path, quota: str, threads: int) -> None:
    write(machine / "cgroup", cpu__max=f"{quota} 100000")
    assert available_threads() == threads


@pytest.mark.parametrize("quota, threads", [("300000", 3), ("-1", CORES)])
def test_a_quota_of_version_1(machine: Path, quota: str, threads: int) -> None:
    write(machine / "cgroup" / "cpu", cpu__cfs_quota_us=quota, cpu__cfs_period_us="100000")
    assert available_threads() == threads


def test_the_tightest_limit_above_us_counts(machine: Path) -> None:
    (machine / "proc" / "self" / "cgroup").write_text("0::/team/job\n")
    write(machine / "cgroup" / "team", cpu__max="400000 100000", memory__max="700")
    write(machine / "cgroup" / "team" / "job", memory__max="500", memory__current="100")
    assert available_threads() == 4
    assert available_memory_bytes() == 400


def test_a_path_outside_our_namespace_is_no_trap(machine: Path) -> None:
    (machine / "proc" / "self" / "cgroup").write_text("0::/../..\n")
    assert available_threads() == CORES


def test_a_limit_that_is_used_up_leaves_nothing(machine: Path) -> None:
    write(machine / "cgroup", memory__max="100", memory__current="300")
    assert available_memory_bytes() == 0


@pytest.mark.parametrize("prefix", ["", "total_"])
def test_cached_files_are_not_in_use(machine: Path, prefix: str) -> None:
    """A12: a container that has just downloaded its model."""
    stat = f"{prefix}inactive_file 300\n{prefix}active_file 200\nanon 80"
    write(machine / "cgroup", memory__max="1000", memory__current="600", memory__stat=stat)
    assert available_memory_bytes() == 900
    dirty = "file_dirty" if not prefix else "total_dirty"
    write(machine / "cgroup", memory__stat=f"{stat}\n{dirty} 100")
    assert available_memory_bytes() == 800


def test_memory_is_given_back_where_the_c_library_can(monkeypatch: pytest.MonkeyPatch) -> None:
    trimmed: list[int] = []
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(malloc_trim=trimmed.append))
    give_back_freed()
    assert trimmed == [0]
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace())
    give_back_freed()
