"""What HTTP costs: tokens per second of streams over HTTP beside the engine's own, in one run.

`python -m benchmarks.http_cost ARTIFACT [--streams 16 --output 128 --rounds 3]` decodes the same
prompts greedily, first in an engine of this process that nobody listens to, then as streamed chat
over a server that runs as `coldpress serve` does; several times in turns, so that other work on the
machine disturbs both alike. The client looks at its plain sockets a few times a second and counts
events: on two cores a client that wakes for each would be measured with the server, where `--eager`
asks for that. Prints one JSON object.

The rate is that of decoding: tokens after every stream has had its first, until the first stream
ends, divided by the time between.
"""

import argparse
import json
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

WORDS = ("the", "press", "stands", "in", "the", "corner", "and", "we", "taste", "its", "oil")


LOOK_SECONDS = 0.05


def prompts(streams: int, words: int) -> list[str]:
    """One for each stream, none the beginning of another."""
    return [
        " ".join([str(index), *(WORDS[(index + at) % len(WORDS)] for at in range(words))])
        for index in range(streams)
    ]


def rate(times: list[list[float]]) -> float:
    """Tokens per second while all streams decode; `times` of each token of each stream."""
    begin = max(stream[0] for stream in times)
    end = min(stream[-1] for stream in times)
    count = sum(begin < moment <= end for stream in times for moment in stream)
    return count / (end - begin)


class EngineAlone:
    """The artifact in an engine of this process."""

    def __init__(self, artifact: Path, streams: int, threads: int | None) -> None:
        from coldpress.loading import Machine, open_artifact
        from runtime.engine.engine import Engine
        from runtime.engine.options import EngineOptions
        from runtime.loading import load_executor
        from runtime.text.template import load_template

        model, self._tokenizer = open_artifact(artifact)
        self._template = load_template(model)
        machine = Machine(threads=threads)
        executor = load_executor(model, threads=machine.threads, context_tokens=streams * 1024)
        self._engine = Engine(executor, EngineOptions(max_running=streams))

    def round(self, texts: list[str], output: int) -> float:
        from runtime.engine.request import Request, SamplingParams

        greedy = SamplingParams(temperature=0.0)
        for index, text in enumerate(texts):
            tokens = self._tokenizer.encode(self._rendered(text), add_special_tokens=False)
            self._engine.add(Request(str(index), tuple(tokens), output, greedy))
        times: list[list[float]] = [[] for _ in texts]
        while self._engine.has_work:
            events = self._engine.step()
            now = time.perf_counter()
            for event in events:
                times[int(event.request_id)].append(now)
        return rate(times)

    def _rendered(self, text: str) -> str:
        assert self._template is not None, "the artifact has no chat template"
        return self._template.render([{"role": "user", "content": text}])


@contextmanager
def server(artifact: Path, streams: int, threads: int | None, more: list[str]) -> Iterator[str]:
    """A server of its own, as users start it; its address."""
    command = [str(Path(sys.executable).with_name("coldpress")), "serve", str(artifact), "--json"]
    command += ["--port", "0", "--max-running", str(streams), *more]
    command += [] if threads is None else ["--threads", str(threads)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield str(json.loads(process.stdout.readline())["url"])
    finally:
        process.terminate()
        process.wait(60)


class Stream:
    """One connection; `times` of each event that holds a token."""

    def __init__(self, url: str, text: str, output: int) -> None:
        place = urlsplit(url)
        assert place.hostname is not None and place.port is not None
        body: dict[str, Any] = {
            "messages": [{"role": "user", "content": text}],
            "max_tokens": output,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
        }
        data = json.dumps(body).encode()
        head = (
            f"POST /v1/chat/completions HTTP/1.1\r\nHost: {place.netloc}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
        )
        self.times: list[float] = []
        self._tail = b""
        self.answer = b""
        """Its beginning, to be shown where it is not what it should be."""
        self.socket = socket.create_connection((place.hostname, place.port))
        self.socket.sendall(head.encode() + data)

    def read(self) -> bool:
        """Take what has come; False at the end."""
        data = self.socket.recv(65536)
        now = time.perf_counter()
        self.answer = self.answer or data
        whole, end, rest = (self._tail + data).rpartition(b"\n\n")
        self._tail = rest if end else whole + rest
        # The chunk that opens a stream, and its end, hold no token.
        self.times += [now] * (whole.count(b'"delta":{"content":') if end else 0)
        return bool(data)


def http_round(url: str, texts: list[str], output: int, *, eager: bool = False) -> float:
    streams = [Stream(url, text, output) for text in texts]
    with selectors.DefaultSelector() as ready:
        for stream in streams:
            ready.register(stream.socket, selectors.EVENT_READ, stream)
        while ready.get_map():
            time.sleep(0 if eager else LOOK_SECONDS)
            for key, _ in ready.select():
                if not key.data.read():
                    ready.unregister(key.fileobj)
    for stream in streams:
        stream.socket.close()
        assert len(stream.times) == output, stream.answer.decode()
    return rate([stream.times for stream in streams])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("--streams", type=int, default=16)
    parser.add_argument("--words", type=int, default=24)
    parser.add_argument("--output", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--serve-option", action="append", default=[])
    asked = parser.parse_args()
    texts = prompts(asked.streams, asked.words)
    alone: list[float] = []
    over_http: list[float] = []
    engine = EngineAlone(asked.artifact, asked.streams, asked.threads)
    with server(asked.artifact, asked.streams, asked.threads, asked.serve_option) as url:
        over = partial(http_round, url, eager=asked.eager)
        for measure in (engine.round, over):
            measure(texts, 8)
        for _ in range(asked.rounds):
            alone.append(engine.round(texts, asked.output))
            over_http.append(over(texts, asked.output))
    ratios = [http / own for own, http in zip(alone, over_http, strict=True)]
    figures = {
        "streams": asked.streams,
        "engine_tokens_per_second": statistics.median(alone),
        "http_tokens_per_second": statistics.median(over_http),
        "fraction": statistics.median(ratios),
        "fractions": ratios,
    }
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
