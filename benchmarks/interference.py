"""What requests take from each other: a long prompt from streams beside it, and a system prompt
that many share from all but the first.

`python -m benchmarks.interference ARTIFACT [--json]`, over HTTP, against a server that runs as
`coldpress serve` does.

- A stream is read while another client sends a prompt as long as the context and 64 KiB allow. A
  chunk is a step with a part of that prompt; the longest wait for a token while it was computed
  may be no more than one chunk's time longer than a wait without it. A chunk's time is that of the
  prompt divided by the steps it took.
- A system prompt of 1,000 tokens comes with 32 questions, one after the other: the time to the
  first token of the later ones may be a tenth of the first's.
"""

import argparse
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import httpx

SHARED_TOKENS, QUESTIONS = 1000, 32
LONG_BYTES = 64 * 1024
STREAM_TOKENS = 400


@contextmanager
def server(artifact: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "coldpress", "serve", str(artifact), "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield str(json.loads(process.stdout.readline())["url"])
    finally:
        process.terminate()
        process.wait()


@dataclass
class Stream:
    """asked, times: of the request, and of each token that came."""

    asked: float = field(default_factory=time.perf_counter)
    times: list[float] = field(default_factory=list)

    def read(self, url: str, prompt: list[int], max_tokens: int) -> None:
        body = {
            "prompt": prompt,
            "max_tokens": max_tokens,
            "stream": True,
            "temperature": 0,
            "ignore_eos": True,
        }
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=600) as answer:
            answer.raise_for_status()
            for line in answer.iter_lines():
                if line.startswith('data: {"id"'):
                    self.times.append(time.perf_counter())


def tokens_of(count: int, first: int = 0) -> list[int]:
    """No text, but a prompt of so many tokens of any model."""
    return [100 + (first + 7919 * i) % 800 for i in range(count)]


def shared_prompt(url: str) -> dict[str, float]:
    """Milliseconds to the first token."""
    system = tokens_of(SHARED_TOKENS)
    waits = []
    for number in range(QUESTIONS):
        stream = Stream()
        stream.read(url, [*system, *tokens_of(12, first=number * 31)], 2)
        waits.append(1000 * (stream.times[0] - stream.asked))
    first, later = waits[0], waits[1:]
    return {
        "first_ms": first,
        "later_ms": median(later),
        "slowest_later_ms": max(later),
        "fraction": median(later) / first,
    }


def steps(url: str) -> float:
    text = httpx.get(f"{url}/metrics", timeout=60).text
    line = next(line for line in text.splitlines() if line.startswith("coldpress_steps_total"))
    return float(line.split()[1])


def long_prompt(url: str) -> dict[str, Any]:
    """Milliseconds between the tokens of a stream, without a long prompt beside it and with."""
    card = httpx.get(f"{url}/v1/models", timeout=60).json()["data"][0]
    length = min(LONG_BYTES // 4, card["max_model_len"] - STREAM_TOKENS)
    stream, long = Stream(), Stream()
    reader = threading.Thread(target=stream.read, args=(url, tokens_of(8, 5), STREAM_TOKENS))
    reader.start()
    while len(stream.times) < STREAM_TOKENS // 4:
        time.sleep(0.005)
    long.asked, before = time.perf_counter(), steps(url)
    long.read(url, tokens_of(length, 3), 1)
    chunks = steps(url) - before
    reader.join()
    ended = long.times[0]
    gaps = [(b, 1000 * (b - a)) for a, b in pairwise(stream.times)]
    alone = median(gap for at, gap in gaps if at < long.asked)
    beside = [gap for at, gap in gaps if long.asked <= at <= ended]
    chunk = 1000 * (ended - long.asked) / chunks
    return {
        "prompt_tokens": length,
        "chunks": chunks,
        "chunk_ms": chunk,
        "alone_ms": alone,
        "beside_ms": median(beside),
        "longest_ms": max(beside),
        "longest_in_chunks": (max(beside) - alone) / chunk,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with server(asked.artifact) as url:
        Stream().read(url, tokens_of(40, 77), 4)
        found = {"shared_prompt": shared_prompt(url), "long_prompt": long_prompt(url)}
    if asked.json:
        print(json.dumps(found))
        return
    for name, figures in found.items():
        words = ", ".join(f"{key} {value:.3g}" for key, value in figures.items())
        print(f"{name}: {words}")


if __name__ == "__main__":
    main()
