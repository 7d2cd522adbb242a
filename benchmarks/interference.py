"""What requests take from each other: a long prompt from streams beside it, and a system prompt
that many share from all but the first.

`python -m benchmarks.interference ARTIFACT [--json]`, over HTTP, against a server that runs as
`coldpress serve` does.

- A stream is read while another client sends a prompt as long as the context and 64 KiB allow. A
  chunk is a step with a part of that prompt. The stream may wait for one chunk at a time: it gets
  a token for each.
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

    asked: float = 0.0
    times: list[float] = field(default_factory=list)

    def read(self, http: httpx.Client, prompt: list[int], max_tokens: int) -> None:
        body = {
            "prompt": prompt,
            "max_tokens": max_tokens,
            "stream": True,
            "temperature": 0,
            "ignore_eos": True,
        }
        self.asked = time.perf_counter()
        with http.stream("POST", "/v1/completions", json=body) as answer:
            answer.raise_for_status()
            for line in answer.iter_lines():
                if line.startswith('data: {"id"'):
                    self.times.append(time.perf_counter())


def tokens_of(count: int, first: int = 0) -> list[int]:
    """No text, but a prompt of so many tokens of any model."""
    return [100 + (first + 7919 * i) % 800 for i in range(count)]


def shared_prompt(http: httpx.Client) -> dict[str, float]:
    """Milliseconds to the first token."""
    system = tokens_of(SHARED_TOKENS)
    waits = []
    for number in range(QUESTIONS):
        stream = Stream()
        stream.read(http, [*system, *tokens_of(12, first=number * 31)], 2)
        waits.append(1000 * (stream.times[0] - stream.asked))
    first, later = waits[0], waits[1:]
    return {
        "first_ms": first,
        "later_ms": median(later),
        "slowest_later_ms": max(later),
        "fraction": median(later) / first,
    }


def steps(http: httpx.Client) -> float:
    text = http.get("/metrics").text
    line = next(line for line in text.splitlines() if line.startswith("coldpress_steps_total"))
    return float(line.split()[1])


def long_prompt(http: httpx.Client) -> dict[str, Any]:
    """What a stream gets while the prompt is computed."""
    card = http.get("/v1/models").json()["data"][0]
    length = min(LONG_BYTES // 4, card["max_model_len"] - STREAM_TOKENS)
    stream, long = Stream(), Stream()
    reader = threading.Thread(target=stream.read, args=(http, tokens_of(8, 5), STREAM_TOKENS))
    reader.start()
    while len(stream.times) < STREAM_TOKENS // 4:
        time.sleep(0.005)
    before = steps(http)
    long.read(http, tokens_of(length, 3), 1)
    chunks = steps(http) - before
    reader.join()
    beside = [at for at in stream.times if long.asked <= at <= long.times[0]]
    return {
        "prompt_tokens": length,
        "chunks": chunks,
        "stream_tokens": len(beside),
        "chunk_ms": 1000 * (long.times[0] - long.asked) / chunks,
        "longest_wait_ms": 1000 * max(b - a for a, b in pairwise(beside)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    with server(asked.artifact) as url, httpx.Client(base_url=url, timeout=600) as http:
        Stream().read(http, tokens_of(40, 77), 4)
        found = {"shared_prompt": shared_prompt(http), "long_prompt": long_prompt(http)}
    if asked.json:
        print(json.dumps(found))
        return
    for name, figures in found.items():
        words = ", ".join(f"{key} {value:.3g}" for key, value in figures.items())
        print(f"{name}: {words}")


if __name__ == "__main__":
    main()
