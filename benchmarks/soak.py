"""A server under steady load for a while, with clients that leave: does anything grow or go lost?

    python -m benchmarks.soak ARTIFACT --minutes 10 [--load 0.7] [-o soak.json]

Starts `coldpress serve`, measures how many requests it completes each second, then sends that many
times `load` at random moments; three clients in ten leave at a random point of their answer. Every
few seconds it looks at memory, descriptors and counters. What it prints is one JSON object.
"""

import argparse
import asyncio
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import httpx

SAMPLE_SECONDS = 5.0
CALIBRATION_SECONDS = 10.0
LEAVING = 0.3
WORDS = ("the", "press", "stands", "in", "a", "corner", "and", "oil", "of", "last", "year")


@dataclass(frozen=True)
class Sample:
    """resident_bytes and descriptors: of the server's processes together."""

    seconds: float
    resident_bytes: int
    descriptors: int
    counters: dict[str, float]


@dataclass
class Soak:
    """accepted: answers that began with status 200. outcomes: by what became of each client."""

    samples: list[Sample] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)
    accepted: int = 0

    def report(self) -> dict[str, Any]:
        """Growth is over the second half, when caches have filled."""
        half = self.samples[len(self.samples) // 2 :]
        before, after = (
            _family(sample.counters, "coldpress_answers_total")
            for sample in (self.samples[0], self.samples[-1])
        )
        finished = {reason: after[reason] - before.get(reason, 0) for reason in after}
        return {
            "seconds": self.samples[-1].seconds,
            "accepted": self.accepted,
            "outcomes": dict(self.outcomes),
            "finished": finished,
            "books_close": sum(finished.values()) == self.accepted,
            "counters_fell": falls(self.samples),
            "resident_bytes": [half[0].resident_bytes, half[-1].resident_bytes],
            "resident_bytes_per_hour": 3600 * slope([(s.seconds, s.resident_bytes) for s in half]),
            "descriptors": [half[0].descriptors, half[-1].descriptors],
            "pages_in_use_at_end": _family(self.samples[-1].counters, "coldpress_pages_in_use"),
        }


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the straight line through the points with the least squares; 0 for a single one."""
    x0, y0 = fmean(x for x, _ in points), fmean(y for _, y in points)
    spread = sum((x - x0) ** 2 for x, _ in points)
    return sum((x - x0) * (y - y0) for x, y in points) / spread if spread else 0.0


def falls(samples: Sequence[Sample]) -> list[str]:
    """Counters that were lower at some moment than at the one before."""
    return sorted(
        {
            name
            for earlier, later in pairwise(samples)
            for name, value in earlier.counters.items()
            if "_total" in name and later.counters.get(name, 0.0) < value
        }
    )


async def soak(url: str, pids: Sequence[int], seconds: float, rate: float, seed: int = 0) -> Soak:
    """`rate` requests a second for so long, then a look at the books once all have ended."""
    result, random = Soak(), Random(seed)
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as http:
        start = time.monotonic()
        result.samples.append(await _sample(http, pids, start))
        sampling = asyncio.create_task(_sample_forever(http, pids, result, start))
        clients: set[asyncio.Task[None]] = set()
        while time.monotonic() < start + seconds:
            clients.add(asyncio.create_task(_client(http, random, result)))
            await asyncio.sleep(random.expovariate(rate))
            clients = {client for client in clients if not client.done()}
        await asyncio.gather(*clients)
        sampling.cancel()
        await _until_idle(http)
        result.samples.append(await _sample(http, pids, start))
    return result


async def capacity(url: str, seconds: float, streams: int = 8) -> float:
    """Requests of this kind that the server completes each second, nobody leaving."""
    random, done = Random(1), 0
    async with httpx.AsyncClient(base_url=url, timeout=120) as http:
        end = time.monotonic() + seconds

        async def keep_asking() -> None:
            nonlocal done
            while time.monotonic() < end:
                answer = await http.post("/v1/completions", json=_body(random))
                done += answer.status_code == 200

        await asyncio.gather(*(keep_asking() for _ in range(streams)))
    return max(1, done) / seconds


def _body(random: Random, *, stream: bool = False) -> dict[str, Any]:
    prompt = " ".join(random.choices(WORDS, k=random.randint(3, 60)))
    return {"prompt": prompt, "max_tokens": random.randint(4, 32), "stream": stream}


async def _client(http: httpx.AsyncClient, random: Random, result: Soak) -> None:
    """One streamed answer, read to its end or left after a random number of events."""
    leave_after = random.randint(0, 20) if random.random() < LEAVING else None
    body, events = _body(random, stream=True), 0
    try:
        async with http.stream("POST", "/v1/completions", json=body) as answer:
            if answer.status_code != 200:
                result.outcomes[str(answer.status_code)] += 1
                return
            result.accepted += 1
            async for line in answer.aiter_lines():
                events += line.startswith("data: ")
                if leave_after is not None and events > leave_after:
                    result.outcomes["left"] += 1
                    return
                if line.startswith('data: {"error"'):
                    result.outcomes["error"] += 1
                    return
        result.outcomes["complete"] += 1
    except httpx.HTTPError as error:
        result.outcomes[type(error).__name__] += 1


async def _sample_forever(
    http: httpx.AsyncClient, pids: Sequence[int], result: Soak, start: float
) -> None:
    while True:
        await asyncio.sleep(SAMPLE_SECONDS)
        result.samples.append(await _sample(http, pids, start))


async def _sample(http: httpx.AsyncClient, pids: Sequence[int], start: float) -> Sample:
    text = (await http.get("/metrics")).text
    found = re.findall(r"^(coldpress_\S+) (\S+)$", text, re.MULTILINE)
    processes = [each for pid in pids for each in (pid, *children_of(pid))]
    return Sample(
        time.monotonic() - start,
        sum(_resident_bytes(pid) for pid in processes),
        sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in processes),
        {name: float(value) for name, value in found},
    )


async def _until_idle(http: httpx.AsyncClient) -> None:
    """The last to leave are noticed, and ended, within a step or two."""
    for _ in range(200):
        counters = dict(
            re.findall(r"^(coldpress_num_\w+)\S* (\S+)$", (await http.get("/metrics")).text, re.M)
        )
        if all(float(value) == 0 for value in counters.values()):
            return
        await asyncio.sleep(0.05)


def children_of(pid: int) -> list[int]:
    path = Path(f"/proc/{pid}/task/{pid}/children")
    direct = [int(child) for child in path.read_text().split()] if path.exists() else []
    return [each for child in direct for each in (child, *children_of(child))]


def _resident_bytes(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return 1024 * int(found[1]) if found else 0


def _family(counters: dict[str, float], name: str) -> dict[str, float]:
    """All samples of one metric, by their labels."""
    return {key[len(name) :]: value for key, value in counters.items() if key.startswith(name)}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("artifact")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--load", type=float, default=0.7)
    parser.add_argument(
        "--kv-cache", default="128MB", help="small, so that it fills before the end"
    )
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args(arguments)
    serve = [sys.executable, "-m", "coldpress", "serve", options.artifact, "--port", "0", "--json"]
    serve += ["--kv-cache", options.kv_cache]
    process = subprocess.Popen(serve, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["url"]
        most = asyncio.run(capacity(url, CALIBRATION_SECONDS))
        seconds = 60 * options.minutes
        result = asyncio.run(soak(url, [process.pid], seconds, most * options.load))
    finally:
        process.terminate()
        exit_code = process.wait()
    report = {"capacity": most, "load": options.load, **result.report(), "exit_code": exit_code}
    print(json.dumps(report))
    if options.output is not None:
        samples = [asdict(sample) for sample in result.samples]
        options.output.write_text(json.dumps({**report, "samples": samples}))


if __name__ == "__main__":
    main()
