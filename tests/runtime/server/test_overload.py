"""A8 and A9: clients that leave in crowds, and more of them than there is room for."""

import asyncio
import json
import threading
import time
from collections.abc import Callable
from functools import partial

import httpx

from runtime.engine.engine import Engine
from runtime.engine.options import EngineOptions
from runtime.engine.request import Request, RequestError, SamplingParams, TokenEvent
from runtime.engine.thread import EngineThread
from tests.runtime.server.harness import MODEL, Running, ScriptedExecutor, running
from tests.waiting import PATIENCE_SECONDS, eventually

CROWD = 500
"""Leave amid their prompts, and as many amid their answers; without HTTP the scheduler's own test
has ten thousand."""


async def leave_in_crowds(server: Running, prompt_tokens: int, to_come: Callable[[], bool]) -> None:
    """CROWD clients ask for streams and close their connections once `to_come` has come."""
    body = {"model": MODEL, "prompt": [5] * prompt_tokens, "stream": True, "max_tokens": 5000}
    payload = json.dumps(body).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(payload)}\r\n\r\n"
    writers = []
    for _ in range(CROWD):
        _, writer = await asyncio.open_connection(server.server.host, server.server.port)
        writer.write(head.encode() + payload)
        writers.append(writer)
    while not to_come():
        await asyncio.sleep(0.01)
    for writer in writers:
        writer.transport.abort()


def test_pages_of_crowds_that_left_are_free_again() -> None:
    """A8. A step later every page is free or evictable, and no request is left anywhere."""
    endless = ScriptedExecutor(
        num_pages=600, page_size=256, max_positions=60_000, hold=partial(time.sleep, 0.01)
    )
    with running(endless, max_running=CROWD // 2, max_waiting=CROWD) as server:
        for round_, prompt_tokens in enumerate((2000, 3), 1):
            accepted = round_ * CROWD
            asyncio.run(
                leave_in_crowds(
                    server,
                    prompt_tokens,
                    lambda n=accepted: server.thread.num_accepted == n,  # type: ignore[misc]
                )
            )
            eventually(
                lambda n=accepted: server.thread.stats().finished["abort"] == n  # type: ignore[misc]
            )
            stats = server.thread.stats()
            assert (stats.pages_in_use, stats.num_running, stats.num_waiting) == (0, 0, 0)
            assert stats.requests == accepted
        # What a prompt left behind is still of use.
        before = server.thread.stats().prefix_cache_hits
        answer = server.client().completions.create(model=MODEL, prompt=[5] * 600, max_tokens=1)
        assert answer.choices[0].finish_reason == "length"
        assert server.thread.stats().prefix_cache_hits > before


def test_not_one_more_step_is_taken_for_those_that_left() -> None:
    """A8: the step in flight ends, and then their pages are free."""
    gate, steps = threading.Semaphore(4), [0]

    def hold() -> None:
        assert gate.acquire(timeout=PATIENCE_SECONDS)
        steps[0] += 1

    thread = EngineThread(Engine(ScriptedExecutor(hold=hold, num_pages=512), check=True))
    ends: list[TokenEvent] = []
    for number in range(16):
        request = Request(str(number), (number,) * 40, 200, SamplingParams(temperature=0))
        thread.submit(request, lambda event: ends.append(event) if event.finish_reason else None)
    eventually(lambda: steps[0] == 4)
    before = thread.stats()
    for number in range(16):
        thread.abort(str(number))
    gate.release()
    eventually(lambda: len(ends) == 16)
    assert {end.finish_reason for end in ends} == {"abort"} and before.pages_in_use > 0
    assert steps[0] == 5 and thread.stats().pages_in_use == 0
    assert thread.shutdown(PATIENCE_SECONDS)


def first_tokens(refused: int) -> dict[str, int]:
    """Step of each accepted request's first token, with so many others turned away meanwhile."""
    steps, first = 0, dict[str, int]()
    gate = [False]

    def hold() -> None:
        nonlocal steps
        while not gate[0]:
            time.sleep(0.001)
        steps += 1

    options = EngineOptions(max_running=2, max_waiting=4, prefix_cache=False)
    thread = EngineThread(Engine(ScriptedExecutor(hold=hold), options))

    def listener(event: TokenEvent) -> None:
        first.setdefault(event.request_id, steps)

    for number in range(5):
        thread.submit(Request(str(number), (5, 6, 7), 10, SamplingParams(temperature=0)), listener)
        if number == 0:
            eventually(lambda: thread.stats().num_running == 1)
    for number in range(refused):
        try:
            thread.submit(Request(f"late {number}", (5,), 10), listener)
        except RequestError as full:
            assert full.code == "queue_full" and (full.retry_after_seconds or 0) >= 0
        else:
            raise AssertionError("the queue was longer than it may be")
    gate[0] = True
    assert thread.shutdown(60)
    return first


def test_accepted_requests_do_not_notice_those_that_are_refused() -> None:
    """A9: ten times as many as there is room for cost the accepted ones no step."""
    calm = first_tokens(0)
    assert len(calm) == 5 and first_tokens(60) == calm


def test_a_burst_is_told_when_to_come_back() -> None:
    """A9 over HTTP: 429 with Retry-After, quickly, and everything accepted is answered."""
    gate = [False]

    def hold() -> None:
        while not gate[0]:
            time.sleep(0.001)

    async def burst(server: Running) -> tuple[list[httpx.Response], list[httpx.Response]]:
        body = {"model": MODEL, "prompt": [5], "max_tokens": 5}
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=server.url, timeout=60, limits=limits) as http:
            post = partial(http.post, "/v1/completions", json=body)
            first = asyncio.create_task(post())
            while server.engine.num_running < 1:
                await asyncio.sleep(0.01)
            waiting = [asyncio.create_task(post()) for _ in range(4)]
            while server.thread.num_accepted < 5:
                await asyncio.sleep(0.01)
            refused = [await post() for _ in range(40)]
            gate[0] = True
            return list(await asyncio.gather(first, *waiting)), refused

    with running(ScriptedExecutor(hold=hold), max_running=2, max_waiting=4) as server:
        accepted, refused = asyncio.run(burst(server))
        assert [answer.status_code for answer in accepted] == [200] * 5
        assert {answer.status_code for answer in refused} == {429}
        assert all(1 <= int(answer.headers["retry-after"]) <= 60 for answer in refused)
        assert refused[0].json()["error"]["code"] == "rate_limit_exceeded"
        assert server.thread.stats().requests == 5
