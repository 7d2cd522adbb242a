"""What this process may use of the machine: a container's limits count, not the host's size."""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

HEADROOM_BYTES = 256 << 20
"""What a model takes beside weights and pages: interpreter, buffers of a step, requests."""
CGROUP_ROOT = Path("/sys/fs/cgroup")
PROC = Path("/proc")
_OOM_SCORE = 500
"""As if it held half of all memory more than it does."""


def available_threads() -> int:
    """Cores by affinity, or fewer where a cgroup grants less time than that; at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    quotas = [quota for folder in _cgroups() if (quota := _quota(folder)) is not None]
    return max(1, int(min([float(cores or 1), *quotas])))


def available_memory_bytes() -> int:
    """Bytes that can be taken without swapping or passing a limit, a cgroup's or that of the
    process (`ulimit -v`); 0 if unknown."""
    free = [room for folder in _cgroups() if (room := _room(folder)) is not None]
    free += _room_of_process()
    host = _host_available_bytes()
    return max(0, min([*free, *([] if host is None else [host])], default=0))


def give_back_freed() -> None:
    """Hand memory that was freed to the system, which the C library would keep for what comes.

    Worth its milliseconds once something large was read: parsing a vocabulary frees more than
    stays of it.
    """
    with contextlib.suppress(OSError, AttributeError):  # other C libraries have no such call
        ctypes.CDLL(None).malloc_trim(0)


def end_first() -> None:
    """Where memory runs out after all, the kernel ends this process rather than those that could
    start it anew."""
    with contextlib.suppress(OSError):
        (PROC / "self" / "oom_score_adj").write_text(str(_OOM_SCORE))


def _cgroups() -> Iterator[Path]:
    """Folders of our cgroup and all above it, for every controller of versions 1 and 2."""
    yield from (CGROUP_ROOT, CGROUP_ROOT / "cpu", CGROUP_ROOT / "memory")
    for line in _read(PROC / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        folder = CGROUP_ROOT / controllers / path.lstrip("/")
        yield from (each for each in (folder, *folder.parents) if CGROUP_ROOT in each.parents)


def _quota(folder: Path) -> float | None:
    """Cores' worth of time, or None for no limit."""
    quota, _, period = _read(folder / "cpu.max").partition(" ")
    if not quota:
        quota, period = _read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us")
    if not quota or quota == "max" or int(quota) <= 0:
        return None
    return int(quota) / int(period)


def _room(folder: Path) -> int | None:
    """Limit less use, or None for no limit. Files that are merely cached are not in use: a model
    that has just been downloaded would not fit beside its own file otherwise."""
    for limit, use in (
        ("memory.max", "memory.current"),
        ("memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        text = _read(folder / limit)
        if text and text != "max":
            return int(text) - max(0, int(_read(folder / use) or 0) - _cached_bytes(folder))
    return None


def _room_of_process() -> list[int]:
    """What is left of its address space, and of what it may write to, where these are limited."""
    try:
        import resource
    except ImportError:
        return []
    pages = (_read(PROC / "self" / "statm").split() + ["0"] * 6)[:6]
    kinds = ((resource.RLIMIT_AS, pages[0]), (resource.RLIMIT_DATA, pages[5]))
    limits = [(resource.getrlimit(kind)[0], int(used)) for kind, used in kinds]
    size = resource.getpagesize()
    return [
        max(0, limit - used * size) for limit, used in limits if limit != resource.RLIM_INFINITY
    ]


def _cached_bytes(folder: Path) -> int:
    """Of files that the kernel drops when memory is short; what is dirty or shared it cannot."""
    fields = dict(line.split() for line in _read(folder / "memory.stat").splitlines())
    names = ("inactive_file", "total_inactive_file"), ("active_file", "total_active_file")
    cached = sum(max(int(fields.get(name, 0)) for name in pair) for pair in names)
    return max(0, cached - int(fields.get("file_dirty", fields.get("total_dirty", 0))))


def _host_available_bytes() -> int | None:
    for line in _read(PROC / "meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
