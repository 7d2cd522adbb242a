"""A4: megabytes of text are encoded off the event loop, one request at a time."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import pytest

from runtime.server.encoding import LARGE_BYTES, MAX_WAITING
from runtime.service import GenerationService
from tests.runtime.server.harness import MODEL, Running, ScriptedExecutor, running
from tests.waiting import PATIENCE_SECONDS, eventually

LARGE = {"model": MODEL, "prompt": "a" * LARGE_BYTES, "max_tokens": 1, "truncate_prompt_tokens": 5}
SMALL = {"model": MODEL, "prompt": "a", "max_tokens": 1}


def gated(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> tuple[threading.Semaphore, Callable[[], int]]:
    """Each long text is encoded once the semaphore lets it; and how many wait for that."""
    gate, num_begun = threading.Semaphore(0), 0
    encode = GenerationService.encode

    def wait(service: GenerationService, text: str, **options: object) -> list[int]:
        nonlocal num_begun
        if len(text) >= LARGE_BYTES:
            num_begun += 1
            assert gate.acquire(timeout=PATIENCE_SECONDS)
        return encode(service, text, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(GenerationService, "encode", wait)
    return gate, lambda: num_begun


def test_small_requests_are_answered_while_large_ones_take_turns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with (
        running(ScriptedExecutor()) as server,
        httpx.Client(base_url=server.url, timeout=PATIENCE_SECONDS) as http,
        ThreadPoolExecutor(MAX_WAITING + 1) as pool,
    ):
        gate, num_begun = gated(server, monkeypatch)
        post = partial(httpx.post, f"{server.url}/v1/completions", timeout=PATIENCE_SECONDS)
        waiting = server.server.app.state.server.large_requests
        asked = [pool.submit(post, json=LARGE) for _ in range(MAX_WAITING + 1)]
        eventually(lambda: (num_begun(), waiting.num_waiting) == (1, MAX_WAITING))
        assert http.get("/health").status_code == 200
        assert http.post("/v1/completions", json=SMALL).status_code == 200
        refused = http.post("/v1/completions", json=LARGE)
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) > 0
        assert num_begun() == 1, "one at a time"
        gate.release(MAX_WAITING + 1)
        answers = [one.result(PATIENCE_SECONDS).json() for one in asked]
        assert {answer["usage"]["prompt_tokens"] for answer in answers} == {5}


def test_health_answers_while_a_word_of_megabytes_is_encoded(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The tokenizer gives the interpreter's lock away; real figures are in docs/RELIABILITY.md."""
    begun, ended = threading.Event(), threading.Event()
    encode = GenerationService.encode

    def observed(service: GenerationService, text: str, **options: object) -> list[int]:
        begun.set()
        try:
            return encode(service, text, **options)  # type: ignore[arg-type]
        finally:
            ended.set()

    monkeypatch.setattr(GenerationService, "encode", observed)
    body = {**LARGE, "prompt": "a" * 1_000_000}
    post = partial(httpx.post, f"{server.url}/v1/completions", timeout=PATIENCE_SECONDS)
    answered = 0
    with ThreadPoolExecutor(1) as pool, httpx.Client(base_url=server.url, timeout=60) as http:
        http.get("/health")
        encoding = pool.submit(post, json=body)
        assert begun.wait(PATIENCE_SECONDS)
        while not ended.is_set():
            assert http.get("/health").status_code == 200
            answered += not ended.is_set()
        assert encoding.result().json()["usage"]["prompt_tokens"] == 5
    assert answered >= 2, "if it kept the lock, none would have been answered before it ended"
