"""A request whose time is over ends with an error that a client can act upon."""

import threading
from functools import partial

import httpx
import openai
import pytest

from tests.runtime.server.harness import MODEL, ScriptedExecutor, running

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
        answer = httpx.post(f"{server.url}/v1/completions", json={**BODY, "stream": True})
        events = answer.text.strip().split("\n\n")
        assert len(events) > 2 and events[-1] == "data: [DONE]"
        assert '"code":"timeout"' in events[-2].replace(" ", "")
