"""The bytes on the wire."""

import json
from typing import Any

import httpx

from runtime.server.sse import event
from tests.runtime.server.harness import MODEL, Running, ScriptedExecutor, running

CHAT = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "stream": True}


def frames(raw: bytes) -> list[bytes]:
    """The payloads of a stream in which every event is one data line and one empty line."""
    assert raw.endswith(b"\n\n")
    blocks = raw[:-2].split(b"\n\n")
    assert all(block.startswith(b"data: ") and b"\n" not in block for block in blocks)
    return [block[6:] for block in blocks]


def payloads(raw: bytes) -> list[dict[str, Any]]:
    *events, done = frames(raw)
    assert done == b"[DONE]"
    return [json.loads(one) for one in events]


def test_framing(http: httpx.Client) -> None:
    answer = http.post("/v1/chat/completions", json={**CHAT, "max_tokens": 120})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["cache-control"] == "no-cache"
    assert answer.content.isascii(), "U+2028 of the script must be escaped"
    assert b"\\u2028" in answer.content
    chunks = payloads(answer.content)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert all("usage" not in chunk for chunk in chunks)
    # A token that completes no character is a chunk all the same.
    assert len(chunks) == 121
    assert {"content": ""} in [chunk["choices"][0]["delta"] for chunk in chunks]


def test_usage_is_null_until_the_last_chunk(http: httpx.Client) -> None:
    body = {**CHAT, "max_tokens": 3, "stream_options": {"include_usage": True}}
    *chunks, last = payloads(http.post("/v1/chat/completions", json=body).content)
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == [] and last["usage"]["completion_tokens"] == 3


def test_a_stop_at_once_gives_an_empty_delta(http: httpx.Client) -> None:
    body = {**CHAT, "max_tokens": 3, "logit_bias": {"2": 100}}
    chunks = payloads(http.post("/v1/chat/completions", json=body).content)
    assert chunks[-1]["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "stop",
    }


def test_completions_have_no_role(http: httpx.Client) -> None:
    body = {"model": MODEL, "prompt": "Hi", "stream": True, "max_tokens": 2}
    chunks = payloads(http.post("/v1/completions", json=body).content)
    assert [chunk["object"] for chunk in chunks] == ["text_completion"] * 2
    assert all(set(chunk["choices"][0]) == {"index", "text", "logprobs", "finish_reason"}
               for chunk in chunks)  # fmt: skip


def test_a_failure_in_the_middle_is_an_error_event() -> None:
    steps = 0

    def fail_later() -> None:
        nonlocal steps
        steps += 1
        if steps > 3:
            raise RuntimeError("the plates are jammed")

    with running(ScriptedExecutor(hold=fail_later)) as server:
        answer = httpx.post(f"{server.url}/v1/chat/completions", json=CHAT, timeout=60)
        chunks = payloads(answer.content)
        assert answer.status_code == 200 and len(chunks) > 2
        error = chunks[-1]["error"]
        assert "the plates are jammed" in error["message"]
        assert (error["type"], error["code"]) == ("server_error", "generation_failed")
        whole = httpx.post(
            f"{server.url}/v1/chat/completions", json={**CHAT, "stream": False}, timeout=60
        )
        assert whole.status_code == 500 and whole.headers["x-should-retry"] == "false"
        assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200


def test_an_event_is_one_line() -> None:
    raw = event({"text": "a\nb\r\u2028\x85🙂"})
    assert raw == b'data: {"text":"a\\nb\\r\\u2028\\u0085\\ud83d\\ude42"}\n\n'


def test_events_leave_as_they_come(server: Running) -> None:
    body = {**CHAT, "max_tokens": 100}
    with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body) as answer:
        sizes = [len(chunk) for chunk in answer.iter_raw()]
    assert len(sizes) > 1
