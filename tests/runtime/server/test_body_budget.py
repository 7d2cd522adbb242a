"""A2: the bodies of all requests together are bounded, however slowly each of them comes."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from runtime.server.body_budget import SMALL_BYTES, Body, BodyBudget
from runtime.server.errors import ApiError
from runtime.server.limits import Limits
from tests.runtime.server.harness import MODEL, Running, ScriptedExecutor, running
from tests.waiting import PATIENCE_SECONDS, eventually

KIB = 1024
LIMITS = Limits(max_bodies_bytes=900 * KIB, body_seconds=50.0)
LARGE = 256 * KIB


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with running(ScriptedExecutor(), limits=LIMITS) as one:
        yield one


@contextmanager
def begun(server: Running, size: int) -> Iterator[socket.socket]:
    """A request of which so many bytes of the body have come, and one is missing."""
    place = (server.server.host, server.server.port)
    with socket.create_connection(place, PATIENCE_SECONDS) as peer:
        head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {size + 1}\r\n\r\n"
        peer.sendall(head.encode() + b" " * size)
        yield peer


def held(server: Running) -> int:
    text = httpx.get(f"{server.url}/metrics", timeout=60).text
    (line,) = [line for line in text.splitlines() if line.startswith("coldpress_http_body_bytes ")]
    return int(float(line.split()[1]))


def test_slow_large_bodies_leave_room_for_others(server: Running) -> None:
    body = json.dumps({"model": MODEL, "prompt": "Hi", "max_tokens": 2}).encode()
    post = f"{server.url}/v1/completions"
    with begun(server, LARGE), begun(server, LARGE), begun(server, LARGE):
        eventually(lambda: held(server) == 3 * LARGE)
        # One byte too many, and none behind it: what is unread would reset the connection.
        with begun(server, 675 * KIB - 3 * (LARGE - SMALL_BYTES) + SMALL_BYTES + 1) as fourth:
            answer = fourth.makefile("rb").read()
            assert answer.startswith(b"HTTP/1.1 429 ")
            head = answer.lower()
            assert b"connection: close" in head and b"rate_limit_exceeded" in head
            (retry,) = [line for line in head.split(b"\r\n") if line.startswith(b"retry-after: ")]
            assert 1 <= int(retry.split()[1]) <= 50, "no later than the slowest must have ended"
        # Small ones still come in.
        assert httpx.post(post, content=body, timeout=60).status_code == 200
    eventually(lambda: held(server) == 0)
    padded = body + b" " * LARGE
    assert httpx.post(post, content=padded, timeout=60).status_code == 200
    eventually(lambda: held(server) == 0)


def test_small_bodies_have_a_bound_too() -> None:
    budget = BodyBudget(LIMITS, lambda: 7.2, clock=lambda: 100.0)
    bodies = [Body() for _ in range(LIMITS.max_bodies_bytes // SMALL_BYTES)]
    for body in bodies:
        budget.add(body, SMALL_BYTES, last=True)
    late = Body()
    with pytest.raises(ApiError) as full:
        budget.add(late, SMALL_BYTES, last=True)
    # Nothing is arriving: the next room comes with the end of an answer.
    assert (full.value.status, full.value.headers["Retry-After"]) == (429, "8")
    budget.release(late)
    budget.release(bodies.pop())
    budget.add(Body(), SMALL_BYTES, last=False)
    for body in bodies:
        budget.release(body)
    assert (budget.held, budget.held_by_large) == (SMALL_BYTES, 0)


def test_the_time_to_come_back_is_that_of_the_oldest_that_still_arrives() -> None:
    now = [0.0]
    budget = BodyBudget(LIMITS, lambda: 0.0, clock=lambda: now[0])
    bodies = [Body() for _ in range(4)]
    for index, body in enumerate(bodies[:3]):
        now[0] = 10.0 * index
        budget.add(body, LARGE, last=False)
    budget.release(bodies[0])
    budget.add(bodies[3], LARGE, last=False)
    now[0] = 25.5
    with pytest.raises(ApiError) as full:
        budget.add(bodies[3], LARGE, last=False)
    assert full.value.headers["Retry-After"] == "35", "10 + 50 - 25.5"
    for body in bodies:
        budget.release(body)
    assert (budget.held, budget.held_by_large) == (0, 0)
