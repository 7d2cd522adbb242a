"""A server under steady load for a while, with clients that leave: does anything grow or go lost?

    python -m benchmarks.soak ARTIFACT --minutes 10 [--load 0.7] [-o soak.json]

Starts `coldpress serve`, measures how many requests it completes each second, then sends that many
times `load` at random moments; three clients in ten leave at a random point of their answer. In
the middle of each quarter of a minute of the first half, ten times as many come at once as may
wait. Every quarter of a minute all rest, and memory, descriptors and counters are looked at.
Prints a line for each bound; -o keeps samples.
The exit code is 1 where a bound does not hold.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

from benchmarks.soak.clients import Books, capacity, load, new_client
from benchmarks.soak.report import figures, summary, verdicts
from benchmarks.soak.watching import TIDY, Sample, sample_at_rest

CALIBRATION_SECONDS = 10.0
ROUND_SECONDS = 15.0
MAX_WAITING = 32


async def soak(
    url: str,
    pids: Sequence[int],
    seconds: float,
    rate: float,
    *,
    burst: int = 0,
    round_seconds: float = ROUND_SECONDS,
    tidy: bool = False,
) -> tuple[list[Sample], Books]:
    """Rounds of load with a look at the server at rest before the first and after each; bursts in
    the first half alone, so that the second shows what they left."""
    books, random, start = Books(), Random(0), time.monotonic()
    async with new_client(url) as http:
        samples = [await sample_at_rest(http, pids, start, tidy=tidy)]
        while len(samples) < 3 or samples[-1].seconds < seconds:
            bursts = len(samples) == 1 or samples[-1].seconds < seconds / 2
            await load(http, random, books, round_seconds, rate, burst if bursts else 0)
            samples.append(await sample_at_rest(http, pids, start, tidy=tidy))
    return samples, books


@contextmanager
def server(artifact: str, kv_cache: str) -> Iterator[tuple[str, "subprocess.Popen[str]"]]:
    """Its address and process; at the end it is told to stop, and waited for."""
    command = [sys.executable, "-m", "coldpress", "serve", artifact, "--port", "0", "--json"]
    command += ["--kv-cache", kv_cache, "--max-waiting", str(MAX_WAITING)]
    with TemporaryDirectory() as folder:
        Path(folder, "sitecustomize.py").write_text(TIDY)
        paths = [folder, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        try:
            assert process.stdout is not None
            yield json.loads(process.stdout.readline())["url"], process
        finally:
            process.terminate()
            process.wait()


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("artifact")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--load", type=float, default=0.7)
    parser.add_argument("--burst", type=int, default=10 * MAX_WAITING)
    parser.add_argument("--kv-cache", default="64MB", help="small, so that it fills at once")
    parser.add_argument("-o", "--output", type=Path)
    asked = parser.parse_args(arguments)
    with server(asked.artifact, asked.kv_cache) as (url, process):
        most = asyncio.run(capacity(url, CALIBRATION_SECONDS))
        print(f"{most:.1f} requests a second; {asked.load:g} times that", file=sys.stderr)
        run = soak(
            url,
            [process.pid],
            60 * asked.minutes,
            most * asked.load,
            burst=asked.burst,
            tidy=True,
        )
        samples, books = asyncio.run(run)
    found = figures(samples, books)
    print(summary(found))
    print(f"exit code of the server: {process.returncode}")
    if asked.output is not None:
        report = {"capacity": most, "load": asked.load, **found, "exit_code": process.returncode}
        report["samples"] = [asdict(one) for one in samples]
        asked.output.write_text(json.dumps(report))
    return int(process.returncode != 0 or any(ok is False for ok, _ in verdicts(found).values()))


if __name__ == "__main__":
    sys.exit(main())
