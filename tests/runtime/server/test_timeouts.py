"""A request whose time is over ends with an error that a client can act upon."""

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import httpx
import openai
import pytest

from tests.runtime.server.harness import MODEL, ScriptedExecutor, running
from tests.waiting import eventually

BODY = {"model": MODEL, "prompt": [5], "max_tokens": 200}


def test_a_deadline_is_503_with_a_time_to_come_back() -> None:
    executor = ScriptedExecutor(hold=partial(threading.Event().wait, 0.02))
    with running(executor, deadline_seconds=0.2) as server:
        with pytest.raises(openai.InternalServerError) as late:
            server.client().completions.create(**BODY)  # type: ignore[call-overload]
        assert late.value.status_code == 503 and late.value.code == "timeout"
        assert late.value.response.headers["retry-after"] == "1"
        assert "longer than allowed" in late.value.message
        assert server.engine.stats.finished["timeout"] == 1


def test_a_stream_that_takes_too_long_ends_with_an_error() -> None:
    executor = ScriptedExecutor(hold=partial(threading.Event().wait, 0.02))
    with running(executor, deadline_seconds=0.2) as server:
        answer = httpx.post(
            f"{server.url}/v1/completions", json={**BODY, "stream": True}, timeout=60
        )
        events = answer.text.strip().split("\n\n")
        assert len(events) > 2 and events[-1] == "data: [DONE]"
        assert '"code":"timeout"' in events[-2].replace(" ", "")


@pytest.mark.parametrize("name", ["timeout_seconds", "queue_timeout_seconds"])
@pytest.mark.parametrize("value", [0, -1, 86_401, "5", True, 1e-400])
def test_times_that_mean_nothing_are_refused_by_name(
    http: httpx.Client, name: str, value: object
) -> None:
    answer = http.post("/v1/completions", json={**BODY, name: value})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == name


def test_a_request_may_say_how_long_it_may_take() -> None:
    """Nobody wants the answer after that, so no client is told to ask again."""
    executor = ScriptedExecutor(hold=partial(threading.Event().wait, 0.02))
    with running(executor, deadline_seconds=1000.0) as server:
        ask = partial(server.client().with_options(max_retries=3).completions.create, **BODY)
        with pytest.raises(openai.APIStatusError) as late:
            ask(extra_body={"timeout_seconds": 0.2})
        assert (late.value.status_code, late.value.code) == (408, "timeout")
        assert late.value.response.headers["x-should-retry"] == "false"
        assert server.engine.stats.finished["timeout"] == server.engine.stats.requests == 1
        answer = ask(extra_body={"timeout_seconds": 600, "queue_timeout_seconds": 600})
        assert answer.choices[0].finish_reason == "length"


def test_a_request_may_say_how_long_it_may_wait() -> None:
    gate = threading.Event()
    executor = ScriptedExecutor(hold=partial(gate.wait, 60))
    with running(executor, max_running=1) as server, ThreadPoolExecutor(2) as pool:
        post = partial(httpx.post, f"{server.url}/v1/completions", timeout=60)
        first = pool.submit(post, json={**BODY, "max_tokens": 2})
        eventually(lambda: server.engine.num_running == 1)
        second = pool.submit(post, json={**BODY, "queue_timeout_seconds": 0.001})
        eventually(lambda: server.thread.num_accepted == 2)
        gate.set()
        assert first.result(60).status_code == 200 and second.result(60).status_code == 408


def test_one_that_waits_too_long_is_not_begun() -> None:
    gate = threading.Event()
    executor = ScriptedExecutor(hold=partial(gate.wait, 60))
    with (
        running(executor, max_running=1, queue_seconds=0.05) as server,
        ThreadPoolExecutor(2) as pool,
    ):
        client = server.client()
        ask = partial(client.completions.create, model=MODEL, prompt=[5], max_tokens=2)
        first = pool.submit(ask)
        while server.engine.num_running == 0:
            threading.Event().wait(0.01)
        second = pool.submit(ask)
        while server.thread.num_accepted < 2:
            threading.Event().wait(0.01)
        threading.Event().wait(0.1)
        gate.set()
        assert first.result(60).choices[0].finish_reason == "length"
        with pytest.raises(openai.InternalServerError, match="in the queue"):
            second.result(60)
        assert server.engine.stats.prompt_tokens == 1
