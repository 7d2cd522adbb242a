"""W4: a server that is told to stop while many streams run."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.runtime.server.harness import MODEL

STREAMS = 50
ROOT = Path(__file__).parents[3]


@contextmanager
def server_process(
    drain_seconds: float, step_seconds: float
) -> Iterator[tuple[int, "subprocess.Popen[str]"]]:
    """The port of a server in a process of its own, whose steps take that long."""
    program = f"""
        import time
        from functools import partial
        from runtime.server.main import serve
        from tests.runtime.server.harness import ScriptedExecutor, make_service
        executor = ScriptedExecutor(num_pages=1024, hold=partial(time.sleep, {step_seconds}))
        service, _, _ = make_service(executor, max_running={STREAMS})
        serve([service], port=0, drain_seconds={drain_seconds},
              on_ready=lambda url: print(url.rpartition(":")[2], flush=True))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline()), process
    finally:
        process.kill()
        process.communicate()


async def stream(port: int, max_tokens: int, began: "asyncio.Semaphore") -> list[bytes]:
    """The events of one streamed answer, to the end of the connection."""
    body = {"model": MODEL, "prompt": [5], "max_tokens": max_tokens, "stream": True}
    payload = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {len(payload)}\r\n\r\n"
    writer.write(head.encode() + payload)
    events: list[bytes] = []
    while line := await reader.readline():
        if line.startswith(b"data: "):
            if not events:
                began.release()
            events.append(line[6:].strip())
        if line == b"data: [DONE]\n":
            break
    writer.close()
    return events


async def stop_amid(
    port: int, process: "subprocess.Popen[str]", max_tokens: int, signals: int
) -> list[list[bytes]]:
    """What all streams got of a server that is signalled once each of them has begun."""
    began = asyncio.Semaphore(0)
    tasks = [asyncio.create_task(stream(port, max_tokens, began)) for _ in range(STREAMS)]
    for _ in range(STREAMS):
        await began.acquire()
    for _ in range(signals):
        process.send_signal(signal.SIGTERM)
        await asyncio.sleep(0.3)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{port}/ready", timeout=60)
    return await asyncio.gather(*tasks)


def test_streams_that_end_in_time_are_whole() -> None:
    with server_process(60, 0.02) as (port, process):
        answers = asyncio.run(stop_amid(port, process, 60, 1))
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    for events in answers:
        assert len(events) == 61 and events[-1] == b"[DONE]"
        assert json.loads(events[-2])["choices"][0]["finish_reason"] == "length"


def test_streams_that_outlast_the_deadline_are_told() -> None:
    with server_process(0.5, 0.1) as (port, process):
        answers = asyncio.run(stop_amid(port, process, 250, 1))
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
    for events in answers:
        assert (
            events[-1] == b"[DONE]"
            and "server stopped" in json.loads(events[-2])["error"]["message"]
        )


def test_a_second_signal_ends_at_once() -> None:
    with server_process(600, 0.1) as (port, process):
        answers = asyncio.run(stop_amid(port, process, 250, 2))
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, ""), "as the first, but without waiting"
    for events in answers:
        assert len(events) < 250 and "server stopped" in json.loads(events[-2])["error"]["message"]
