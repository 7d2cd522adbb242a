""" "Alive" in the cases of abuse: an answer that is under way meanwhile comes to its right end, and
/health stays 200."""

import threading
from collections.abc import Callable, Iterator
from functools import partial

import httpx
import pytest

from runtime.server.access import Access
from runtime.server.guesses import FREE_GUESSES
from runtime.server.keys import KeyRing
from runtime.server.limits import Limits
from tests.runtime.server.harness import MODEL, Running, ScriptedExecutor, running, tiny_tokenizer
from tests.runtime.server.images import IMAGES, image_requests
from tests.runtime.server.test_refusals import ABSURD, MEBIBYTE, exchange
from tests.waiting import PATIENCE_SECONDS

KEY = "a-key-for-these-tests"
HEAD = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n".encode()
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
BEGUN, WHOLE = 5, 60
"""Tokens of the answer before the abuse, and in all."""

Post = Callable[..., httpx.Response]


def a1(server: Running, post: Post) -> None:
    for _, path, body in ABSURD:
        assert post(path, content=body).status_code == 400


def a2(server: Running, post: Post) -> None:
    for parts in (
        (HEAD + f"Content-Length: {64 * MEBIBYTE}\r\n\r\n".encode(), b" " * 100_000),
        (HEAD + b"X-A: " + b"x" * MEBIBYTE + b"\r\n\r\n",),
        (CHUNKED, b"6\r\n      \r\n" * 250_000),
        (HEAD + b"Content-Length: 9\r\n\r\n{",),
    ):
        # A reset may overtake the answer while the client is still sending.
        answer = exchange(server, *parts)
        assert answer == b"" or answer.split()[1] in (b"408", b"413", b"431"), answer[:100]


def a3(server: Running, post: Post) -> None:
    for body in (b"[" * 100_000, b'{"n": NaN}', b'{"n": 1, "n": 2}', b'{"model": "\\ud800"}'):
        assert post("/v1/completions", content=body).status_code == 400


def a4(server: Running, post: Post) -> None:
    for prompt in ([5] * 257, "a" * 8_000_000):
        answer = post("/v1/completions", json={"prompt": prompt})
        assert answer.json()["error"]["code"] == "context_length_exceeded"


def a5(server: Running, post: Post) -> None:
    for bomb in ("(" * 60_000, ".*" * 30_000):
        body = {"prompt": "a", "guided_regex": bomb}
        assert post("/v1/completions", json=body).status_code == 400


def w1(server: Running, post: Post) -> None:
    for path, body, field in (each for url in IMAGES for each in image_requests(url)):
        if field is not None:
            assert post(path, json=body).status_code == 400


def w2(server: Running, post: Post) -> None:
    for number in range(FREE_GUESSES + 1):
        headers = {"Authorization": f"Bearer guess {number}"}
        assert post("/v1/completions", json={}, headers=headers).status_code in (401, 429)


def w6(server: Running, post: Post) -> None:
    line_end = HEAD + b"X-Request-Id: a\rSet-Cookie: b=c\r\nContent-Length: 2\r\n\r\n{}"
    assert exchange(server, line_end).startswith(b"HTTP/1.1 400 ")


@pytest.fixture(scope="module")
def gate() -> threading.Event:
    """Where the engine stands in the middle of the answer until it is set."""
    return threading.Event()


@pytest.fixture(scope="module")
def server(gate: threading.Event) -> Iterator[Running]:
    steps = iter(range(BEGUN + 1))

    def hold() -> None:
        if next(steps, None) is None:
            assert gate.wait(PATIENCE_SECONDS * 5)

    limits = Limits(body_seconds=0.3, header_seconds=5)
    access = Access(KeyRing.of(KEY))
    with running(ScriptedExecutor(hold=hold), limits=limits, access=access) as one:
        yield one
        gate.set()


def test_an_answer_that_is_under_way_is_not_disturbed(
    server: Running, gate: threading.Event
) -> None:
    headers = {"Authorization": f"Bearer {KEY}"}
    body = {"model": MODEL, "prompt": [5, 6, 7], "max_tokens": WHOLE, "stream": True}
    with (
        httpx.Client(base_url=server.url, timeout=PATIENCE_SECONDS, headers=headers) as http,
        httpx.Client(base_url=server.url, timeout=PATIENCE_SECONDS, headers=headers) as other,
        http.stream("POST", "/v1/completions", json=body) as answer,
    ):
        lines = (line for line in answer.iter_lines() if line.startswith("data: "))
        begun = [next(lines) for _ in range(BEGUN)]
        for abuse in (a1, a2, a3, a4, a5, w1, w6, w2):
            abuse(server, partial(other.post))
            assert other.get("/health").status_code == 200, abuse.__name__
        gate.set()
        events = [*begun, *lines]
    assert events[-1] == "data: [DONE]"
    chunks = [httpx.Response(200, content=line[6:]).json() for line in events[:-1]]
    choices = [chunk["choices"][0] for chunk in chunks]
    assert choices[-1]["finish_reason"] == "length"
    expected = tiny_tokenizer().decode(ScriptedExecutor().answer(3, WHOLE))
    assert "".join(choice["text"] for choice in choices) == expected
