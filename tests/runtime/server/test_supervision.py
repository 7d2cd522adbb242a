"""A11 as clients see it: the model's process dies or hangs under a server that lives on."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from runtime.server.limits import Limits
from runtime.server.main import HttpServer
from runtime.service import GenerationService
from runtime.worker.engine_process import EngineProcess
from runtime.worker.spec import ModelSpec
from tests.runtime.server.harness import MODEL, listening, tiny_tokenizer
from tests.runtime.worker.fake_worker import KILL, command
from tests.waiting import eventually

WAIT = 60.0
LONG = {"model": MODEL, "prompt": [5, 6], "max_tokens": 400, "stream": True, "ignore_eos": True}


@contextmanager
def served(stall_seconds: float = 60.0) -> Iterator[tuple[EngineProcess, httpx.Client]]:
    """A server over a worker; its supervisor waits twice as long as /health does."""
    spec = ModelSpec(Path("nowhere"), "http")
    engine = EngineProcess(spec, command=command(), stall_seconds=2 * stall_seconds)
    facts = engine.wait_ready(WAIT)
    service = GenerationService(engine, tiny_tokenizer(), None, MODEL, facts.usable_positions)
    server = HttpServer([service], limits=Limits(stall_seconds=stall_seconds), drain_seconds=0)
    with listening(server), httpx.Client(base_url=server.url, timeout=WAIT) as http:
        yield engine, http
    assert not engine.is_alive


class Stream:
    """A client on a thread of its own; `first` is set with the first event."""

    def __init__(self, base: httpx.URL) -> None:
        self.first = threading.Event()
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._read, args=(str(base),))
        self._thread.start()

    def end(self) -> list[str]:
        self._thread.join(WAIT)
        assert not self._thread.is_alive()
        return [line for line in self.lines if line]

    def _read(self, base: str) -> None:
        with httpx.stream("POST", f"{base}/v1/completions", json=LONG, timeout=WAIT) as answer:
            for line in answer.iter_lines():
                self.lines.append(line)
                self.first.set()


def status(http: httpx.Client, path: str) -> int:
    return http.get(path).status_code


def error_at_end(lines: list[str]) -> str:
    """A stream that fails ends with one error event and the usual last line."""
    *_, last, done = lines
    assert done == "data: [DONE]"
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error["type"] == "server_error"
    return str(error["message"])


def test_a_killed_worker_ends_streams_and_comes_back() -> None:
    with served() as (engine, http):
        stream = Stream(http.base_url)
        assert stream.first.wait(WAIT)
        os.kill(engine.worker_pid, signal.SIGKILL)
        assert "process ended" in error_at_end(stream.end())
        # Asked before the next worker is there, answered once it is.
        answer = http.post("/v1/completions", json={**LONG, "stream": False, "max_tokens": 3})
        assert answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] == 3
        assert status(http, "/ready") == status(http, "/health") == 200


def test_a_hung_worker_turns_liveness_off_until_it_is_replaced() -> None:
    with served(stall_seconds=1.0) as (engine, http):
        stream = Stream(http.base_url)
        assert stream.first.wait(WAIT)
        assert status(http, "/health") == 200
        os.kill(engine.worker_pid, signal.SIGSTOP)
        eventually(lambda: status(http, "/health") == 503)
        assert "process ended" in error_at_end(stream.end())
        eventually(lambda: status(http, "/health") == status(http, "/ready") == 200)


def test_a_request_that_kills_workers_is_refused_the_third_time() -> None:
    poison = {**LONG, "prompt": [KILL], "stream": False}
    with served() as (_, http):
        first = http.post("/v1/completions", json=poison)
        assert first.status_code == 500 and first.headers["x-should-retry"] == "false"
        again = http.post("/v1/completions", json=poison)
        assert again.status_code == 400 and again.headers["x-should-retry"] == "false"
        assert again.json()["error"]["code"] == "quarantined"
        answer = http.post("/v1/completions", json={**LONG, "stream": False, "max_tokens": 3})
        assert answer.status_code == 200
