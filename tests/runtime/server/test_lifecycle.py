"""Many clients at once, clients that leave, and a server that is told to stop."""

import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import httpx
import openai
import pytest

from quant.format.errors import InputError
from runtime.engine.batch import StepBatch
from runtime.engine.request import Request
from runtime.generation import GenerationParams
from runtime.server.main import HttpServer
from tests.runtime.engine.fake_executor import FakeExecutor, greedy_answer
from tests.runtime.server.harness import (
    MODEL,
    Running,
    ScriptedExecutor,
    running,
    tiny_tokenizer,
)
from tests.waiting import eventually

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]}


def idle(server: Running) -> bool:
    stats = server.thread.stats()
    return (stats.num_running, stats.num_waiting, stats.pages_in_use) == (0, 0, 0)


def test_sixteen_streams_over_a_small_pool_each_get_their_own_text() -> None:
    executor = FakeExecutor(num_pages=24, page_size=4, vocab_size=384, max_positions=64)
    prompts = [[(7 * i + j) % 300 + 3 for j in range(3 + i)] for i in range(16)]
    gate = threading.Event()

    def wait(batch: StepBatch) -> None:
        gate.wait(60)

    executor.before_step = wait

    with running(executor) as server, server.client() as client:

        def answer(prompt: list[int]) -> str:
            stream = client.completions.create(
                model=MODEL,
                prompt=prompt,
                max_tokens=12,
                temperature=0,
                stream=True,
                extra_body={"ignore_eos": True},
            )
            return "".join(chunk.choices[0].text for chunk in stream)

        with ThreadPoolExecutor(16) as pool:
            answers = [pool.submit(answer, prompt) for prompt in prompts]
            eventually(lambda: server.thread.num_accepted == 16)
            gate.set()
            texts = [one.result(60) for one in answers]
        assert server.thread.stats().preemptions > 0
        eventually(lambda: idle(server))
    for prompt, text in zip(prompts, texts, strict=True):
        alone = greedy_answer(Request("alone", tuple(prompt), 12), executor)
        assert text == tiny_tokenizer().decode(alone)


def post_and_leave(server: Running, body: dict[str, object], leave: Callable[[], bool]) -> None:
    """A client that asks, and closes its connection as soon as `leave` holds, whatever came."""
    payload = json.dumps(body).encode()
    with socket.create_connection((server.server.host, server.server.port), 20) as peer:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(payload)}"
        peer.sendall(head.encode() + b"\r\n\r\n" + payload)
        eventually(leave)


@pytest.mark.parametrize("stream", [True, False])
def test_pages_of_a_client_that_left_are_freed(stream: bool) -> None:
    # The context is so long that no answer ends by itself while anyone waits.
    endless = ScriptedExecutor(page_size=256, max_positions=60_000, hold=partial(time.sleep, 0.005))
    with running(endless) as server:
        for round_ in range(3):
            body = {**CHAT, "stream": stream, "n": 2}
            post_and_leave(server, body, lambda: server.thread.stats().num_running == 2)
            eventually(lambda: idle(server))
            assert server.thread.stats().finished["abort"] == 2 * (round_ + 1)


def test_a_full_queue_is_429_and_can_be_tried_again() -> None:
    gate = threading.Event()
    executor = ScriptedExecutor(hold=partial(gate.wait, 60))
    with running(executor, max_running=1, max_waiting=1) as server, ThreadPoolExecutor(2) as pool:
        client = server.client()

        def ask() -> str | None:
            answer = client.completions.create(model=MODEL, prompt=[5], max_tokens=2)
            return answer.choices[0].finish_reason

        asked = [pool.submit(ask)]
        eventually(lambda: server.engine.num_running == 1)
        asked.append(pool.submit(ask))
        eventually(lambda: server.thread.num_accepted == 2)
        with pytest.raises(openai.RateLimitError) as full:
            ask()
        assert full.value.code == "rate_limit_exceeded"
        assert 1 <= int(full.value.response.headers["retry-after"]) <= 60
        gate.set()
        assert [one.result(60) for one in asked] == ["length", "length"]
        assert ask() == "length"


def test_all_choices_are_given_back_when_one_does_not_fit_the_queue() -> None:
    gate = threading.Event()
    executor = ScriptedExecutor(hold=partial(gate.wait, 60))
    with running(executor, max_running=1, max_waiting=4) as server:
        with pytest.raises(openai.RateLimitError):
            server.client().completions.create(model=MODEL, prompt=[5], n=16)
        gate.set()
        eventually(lambda: idle(server))


def test_health_notices_an_engine_that_hangs_or_has_ended() -> None:
    gate = threading.Event()
    executor = ScriptedExecutor(hold=partial(gate.wait, 60))
    with running(executor) as server:
        assert httpx.get(f"{server.url}/health", timeout=60).content == b""
        server.service.submit([5], GenerationParams(max_tokens=3))
        object.__setattr__(server.server.app.state.server.limits, "stall_seconds", 0.0)
        eventually(lambda: httpx.get(f"{server.url}/health", timeout=60).status_code == 503)
        gate.set()
        eventually(lambda: httpx.get(f"{server.url}/health", timeout=60).status_code == 200)
        server.thread.shutdown(1)
        answer = httpx.get(f"{server.url}/health", timeout=60)
        assert answer.status_code == 503 and answer.json()["error"]["type"] == "overloaded"


def test_metrics_count_what_was_answered(server: Running) -> None:
    def value(name: str) -> float:
        lines = httpx.get(f"{server.url}/metrics", timeout=60).text.splitlines()
        return float(next(line for line in lines if line.startswith(name)).split()[-1])

    answers = 'coldpress_answers_total{finish_reason="length",model_name="tiny"}'
    server.client().completions.create(model=MODEL, prompt=[5], max_tokens=3)
    before = (value("coldpress_answer_tokens_total"), value(answers))
    server.client().completions.create(model=MODEL, prompt=[5], max_tokens=3)
    assert value("coldpress_answer_tokens_total") == before[0] + 3
    assert value(answers) == before[1] + 1
    assert value("coldpress_pages_total") == 255
    assert value("coldpress_time_to_first_token_seconds_count") >= 2


def test_stopping_lets_running_streams_end_and_takes_no_more() -> None:
    pace = ScriptedExecutor(hold=lambda: time.sleep(0.005))
    with running(pace) as server, server.client() as client:
        stream = client.completions.create(model=MODEL, prompt=[5], max_tokens=60, stream=True)
        first = next(iter(stream))
        server.server.stop()
        rest = list(stream)
        assert len([first, *rest]) == 60 and rest[-1].choices[0].finish_reason == "length"
        with pytest.raises(openai.APIConnectionError):
            server.client().models.list()


def test_streams_that_outlast_the_drain_get_an_error() -> None:
    pace = ScriptedExecutor(hold=lambda: time.sleep(0.02))
    with running(pace, drain_seconds=0.1) as server, server.client() as client:
        stream = client.completions.create(model=MODEL, prompt=[5], max_tokens=250, stream=True)
        next(iter(stream))
        server.server.stop()
        with pytest.raises(openai.APIError, match="server stopped"):
            list(stream)


def test_a_port_that_is_taken_is_the_users_mistake(server: Running) -> None:
    with pytest.raises(InputError, match=f"cannot listen on 127.0.0.1:{server.server.port}"):
        HttpServer([server.service], port=server.server.port)


def test_a_signal_ends_the_process_with_zero() -> None:
    program = textwrap.dedent(
        """
        from runtime.server.main import serve
        from tests.runtime.server.harness import ScriptedExecutor, make_service
        service, _, _ = make_service(ScriptedExecutor())
        serve([service], port=0, on_ready=lambda url: print(url, flush=True))
        """
    )
    root = Path(__file__).parents[3]
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert httpx.get(f"{url}/health", timeout=60).status_code == 200
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
