"""A12 in a cgroup of its own: a worker whose memory is cut while it runs uses fewer pages, answers
the same, and is not killed."""

import sys
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from runtime.machine import CGROUP_ROOT, _cached_bytes
from runtime.worker.engine_process import EngineProcess
from runtime.worker.memory_watch import RESERVE_BYTES
from runtime.worker.spec import ModelSpec
from tests.runtime.worker.test_engine_process import WAIT, ask, request_for
from tests.tiny import tiny_checkpoint
from tests.waiting import eventually

POOL = 64 << 20
LEFT = 16 << 20


def memory_folder() -> Path:
    """Of the memory controller of version 1, or of the only hierarchy of version 2."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers in ("memory", "") and (CGROUP_ROOT / controllers).exists():
            folder = CGROUP_ROOT / controllers / path.lstrip("/")
            if any((folder / name).exists() for name in ("memory.limit_in_bytes", "memory.max")):
                return folder
    pytest.skip("no cgroup of ours has a memory controller")


@pytest.fixture
def cgroup() -> Iterator[Path]:
    folder = memory_folder() / f"coldpress-{uuid4().hex}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"no cgroup can be made here: {error}")
    if limit_of(folder) is None:
        folder.rmdir()
        pytest.skip("a cgroup that is made here has no memory controller")
    yield folder
    eventually(lambda: not (folder / "cgroup.procs").read_text())
    folder.rmdir()


def limit_of(folder: Path) -> Path | None:
    names = ("memory.limit_in_bytes", "memory.max")
    return next((folder / name for name in names if (folder / name).exists()), None)


def used_bytes(folder: Path) -> int:
    names = ("memory.usage_in_bytes", "memory.current")
    return int(next((folder / n).read_text() for n in names if (folder / n).exists()))


def num_killed(folder: Path) -> int:
    names = ("memory.oom_control", "memory.events")
    text = next((folder / name).read_text() for name in names if (folder / name).exists())
    return int(dict(line.split() for line in text.splitlines()).get("oom_kill", 0))


def test_memory_that_shrinks_takes_pages_and_not_the_worker(cgroup: Path, tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "model", max_positions=256, hidden_size=256)
    root = str(Path(__file__).parents[3])
    program = (
        f"import runpy, sys; sys.path.insert(0, {root!r}); "
        f"open({str(cgroup / 'cgroup.procs')!r}, 'w').write('0'); "
        "runpy.run_module('runtime.worker', run_name='__main__')"
    )
    command = (sys.executable, "-c", program)
    engine = EngineProcess(
        ModelSpec(tmp_path / "model", "m", kv_cache_bytes=POOL, machine={"threads": 1}),
        command=command,
    )
    try:
        engine.wait_ready(WAIT)
        pid = engine.worker_pid
        asked = [request_for(str(i), *range(3 + i, 40 + i), max_tokens=60) for i in range(6)]

        def answers() -> list[list[int]]:
            heard = [ask(engine, request) for request in asked]
            assert {one.end().finish_reason for one in heard} == {"length"}
            return [one.tokens for one in heard]

        before = answers()
        planned = engine.stats().pages_total
        limit = limit_of(cgroup)
        assert limit is not None
        used = used_bytes(cgroup) - _cached_bytes(cgroup)
        limit.write_text(str(used + RESERVE_BYTES + LEFT))
        eventually(lambda: engine.stats().pages_total < planned)
        shrunk = engine.stats().pages_total
        assert shrunk < planned // 2
        assert answers() == before and engine.stats().pages_total <= planned // 2
        limit.write_text(str(1 << 40))
        eventually(lambda: engine.stats().pages_total == planned)
        assert engine.worker_pid == pid and engine.stats().worker_restarts == 0
        assert num_killed(cgroup) == 0
    finally:
        engine.shutdown(0)
