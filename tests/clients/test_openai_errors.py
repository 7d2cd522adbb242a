"""Each refusal is the openai client's own exception, and it retries what a retry can help."""

import threading
from functools import partial

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam

from runtime.server.access import Access
from runtime.server.keys import KeyRing
from tests.runtime.server.harness import MODEL, Running, ScriptedExecutor, running
from tests.waiting import eventually

HI: list[ChatCompletionMessageParam] = [{"role": "user", "content": "Hi"}]


def test_refusals_are_typed(server: Running) -> None:
    with server.client() as client:
        with pytest.raises(openai.BadRequestError) as refused:
            client.chat.completions.create(model=MODEL, messages=HI, temperature=9)
        assert (refused.value.param, refused.value.type) == ("temperature", "invalid_request_error")
        with pytest.raises(openai.BadRequestError) as too_long:
            client.completions.create(model=MODEL, prompt=[5] * 3000)
        assert too_long.value.code == "context_length_exceeded"
        assert "maximum context length is 2048 tokens" in too_long.value.message
        with pytest.raises(openai.NotFoundError) as unknown:
            client.models.retrieve("nothing")
        assert unknown.value.code == "model_not_found"


def test_a_wrong_key_is_an_authentication_error() -> None:
    with running(ScriptedExecutor(), access=Access(KeyRing.of("right"))) as server:
        with (
            OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError) as refused,
        ):
            client.models.list()
        assert refused.value.code == "invalid_api_key"
        with OpenAI(base_url=f"{server.url}/v1", api_key="right", max_retries=0) as client:
            assert client.models.list().data[0].id == MODEL


def test_a_full_queue_is_retried_until_there_is_room() -> None:
    gate = threading.Event()
    with (
        running(
            ScriptedExecutor(hold=lambda: gate.wait(60)), max_running=1, max_waiting=1
        ) as server,
        server.client() as client,
    ):
        ask = partial(client.completions.create, model=MODEL, prompt=[5], max_tokens=2, stream=True)
        streams = [ask()]
        eventually(lambda: server.engine.num_running == 1)
        streams.append(ask())
        with pytest.raises(openai.RateLimitError) as refused:
            client.completions.create(model=MODEL, prompt=[5], max_tokens=2)
        wait = refused.value.response.headers["retry-after"]
        assert float(wait) > 0 and refused.value.code == "rate_limit_exceeded"
        threading.Timer(0.2, gate.set).start()
        patient = client.with_options(max_retries=5)
        answer = patient.completions.create(model=MODEL, prompt=[5], max_tokens=2)
        assert answer.choices[0].finish_reason == "length"
        assert all(len(list(stream)) == 2 for stream in streams)


def test_what_would_fail_again_is_asked_once() -> None:
    calls = 0

    def fail() -> None:
        nonlocal calls
        calls += 1
        raise RuntimeError("jammed")

    with running(ScriptedExecutor(hold=fail)) as server, server.client() as client:
        patient = client.with_options(max_retries=3)
        with pytest.raises(openai.InternalServerError) as failed:
            patient.chat.completions.create(model=MODEL, messages=HI)
        assert failed.value.response.headers["x-should-retry"] == "false" and calls == 1
        with pytest.raises(openai.APIError, match="jammed"):
            list(patient.chat.completions.create(model=MODEL, messages=HI, stream=True))
