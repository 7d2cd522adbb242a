"""What is looked at: the memory and descriptors of a server's processes, and its counters.

A server at rest is comparable with itself: nobody is being answered, garbage is collected, and what
the C library had kept is given back. What its processes then hold for themselves is what requests
have left behind, to within some ten kilobytes. Under load, memory follows the load.
"""

import asyncio
import os
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

TIDY = """import ctypes, gc, signal

def _tidy(number, frame):
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)

signal.signal(signal.SIGUSR1, _tidy)
"""
"""As `sitecustomize` of the server's interpreters."""
_TIDY_SECONDS = 0.5
_TIDIED = ("coldpress", "runtime.worker")


@dataclass(frozen=True)
class Sample:
    """private_bytes, resident_bytes and descriptors: of the server's processes together."""

    seconds: float
    private_bytes: int
    resident_bytes: int
    descriptors: int
    counters: dict[str, float]


async def sample(http: httpx.AsyncClient, pids: Sequence[int], start: float) -> Sample:
    """As things are."""
    counters = await _metrics(http)
    processes = [each for pid in pids for each in (pid, *children_of(pid))]
    return Sample(
        time.monotonic() - start,
        sum(_rollup(pid, r"Private_\w+|Swap") for pid in processes),
        sum(_rollup(pid, "Rss") for pid in processes),
        sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in processes),
        counters,
    )


async def sample_at_rest(
    http: httpx.AsyncClient, pids: Sequence[int], start: float, *, tidy: bool
) -> Sample:
    """Once the last to leave are noticed and ended, which takes a step or two. tidy: the server
    runs TIDY."""
    for _ in range(1200):
        counters = await _metrics(http)
        if all(value == 0 for key, value in counters.items() if "_num_" in key):
            break
        await asyncio.sleep(0.05)
    if tidy:
        for pid in (each for one in pids for each in (one, *children_of(one))):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
            if any(word in _TIDIED for word in words):
                os.kill(pid, signal.SIGUSR1)
        await asyncio.sleep(_TIDY_SECONDS)
    return await sample(http, pids, start)


async def _metrics(http: httpx.AsyncClient) -> dict[str, float]:
    text = (await http.get("/metrics")).text
    found = re.findall(r"^(coldpress_\S+) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}


def children_of(pid: int) -> list[int]:
    """All below it."""
    direct = [
        int(child)
        for path in Path(f"/proc/{pid}/task").glob("*/children")
        for child in path.read_text().split()
    ]
    return [each for child in direct for each in (child, *children_of(child))]


def _rollup(pid: int, names: str) -> int:
    """Bytes of these lines of what the system says of a process's memory."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    found = re.findall(rf"^(?:{names}):\s+(\d+) kB", text, re.MULTILINE)
    return 1024 * sum(map(int, found))
