"""A container's limits count, not the host's size."""

import ctypes
import os
import resource
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


@pytest.mark.parametrize(
    "quota, threads",
    [("250000", 2), ("199999", 1), ("50000", 1), ("900000", CORES), ("max", CORES)],
)
def test_a_quota_of_version_2(machine: Path, quota: str, threads: int) -> None:
    write(machine / "cgroup", cpu__max=f"{quota} 100000")
    assert available_threads() == threads


@pytest.mark.parametrize("quota, threads", [("300000", 3), ("150000", 1), ("-1", CORES)])
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


def test_affinity_counts_beside_a_quota(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(machine / "cgroup", cpu__max="400000 100000")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 5})
    assert available_threads() == 2


def test_a_path_of_version_1_counts(machine: Path) -> None:
    """Each controller has a tree of its own."""
    (machine / "proc" / "self" / "cgroup").write_text("4:memory:/a/b\n3:cpu,cpuacct:/a\n")
    write(machine / "cgroup" / "memory" / "a" / "b", memory__limit_in_bytes="900")
    write(machine / "cgroup" / "memory" / "a" / "b", memory__usage_in_bytes="300")
    cpu = machine / "cgroup" / "cpu,cpuacct" / "a"
    write(cpu, cpu__cfs_quota_us="350000", cpu__cfs_period_us="100000")
    assert available_threads() == 3
    assert available_memory_bytes() == 600


@pytest.mark.parametrize(("kind", "field"), [("RLIMIT_AS", 0), ("RLIMIT_DATA", 5)])
def test_a_limit_of_the_process_counts(
    kind: str, field: int, machine: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ulimit -v` and `ulimit -d`, less what it holds already."""
    fields = ["9"] * 7
    fields[field] = "3"
    (machine / "proc" / "self" / "statm").write_text(" ".join(fields) + "\n")
    limited = getattr(resource, kind)
    size = resource.getpagesize()
    none = resource.RLIM_INFINITY
    monkeypatch.setattr(
        resource, "getrlimit", lambda each: (10 * size, none) if each == limited else (none, none)
    )
    assert available_memory_bytes() == 7 * size
    (machine / "proc" / "self" / "statm").write_text(" ".join(["99"] * 7))
    assert available_memory_bytes() == 0
