"""Bad input: a small 400 that names the field, and a server that goes on."""

import json
import socket
import time
from functools import partial
from typing import Any

import httpx
import pytest

from runtime.server.limits import Limits
from runtime.server.schemas import REFUSED, ChatBody
from tests.runtime.server.harness import MODEL, Running, ScriptedExecutor, running

HI = [{"role": "user", "content": "Hi"}]
MEBIBYTE = 1024 * 1024


def refusal(http: httpx.Client, path: str, body: bytes, status: int = 400) -> dict[str, Any]:
    """The error object; its shape and size are those of every refusal."""
    answer = http.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    assert len(answer.content) < 4096
    (key,) = answer.json()
    error: dict[str, Any] = answer.json()[key]
    assert key == "error" and set(error) == {"message", "type", "param", "code"}
    assert http.get("/health").status_code == 200
    return error


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": MODEL, "messages": HI, "max_tokens": 2, **fields}).encode()


def completion(**fields: Any) -> bytes:
    return json.dumps({"model": MODEL, "prompt": "Hi", "max_tokens": 2, **fields}).encode()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("n", 10**9),
        ("n", 0),
        ("top_logprobs", 10**6),
        ("stop", [str(i) for i in range(17)]),
        ("stop", ""),
        ("stop", "x" * 2000),
        ("stop", 5),
        ("temperature", -1),
        ("temperature", 2.5),
        ("temperature", "hot"),
        ("temperature", True),
        ("top_p", 0),
        ("top_k", -2),
        ("min_p", 1.5),
        ("presence_penalty", 3),
        ("frequency_penalty", -3),
        ("repetition_penalty", 0),
        ("max_tokens", 0),
        ("max_tokens", -1),
        ("max_completion_tokens", 1.5),
        ("min_tokens", 3),
        ("seed", 10**40),
        ("logit_bias", {"x": 1}),
        ("logit_bias", {"5": 101}),
        ("logit_bias", {"5": None}),
        ("logit_bias", {"384": 1}),
        ("logit_bias", {str(i): "bad" for i in range(50_000)}),
        ("stop_token_ids", list(range(1000))),
        ("messages", []),
        ("messages", "Hi"),
        ("messages", [1] * 100_000),
        ("messages", [{"content": "Hi"}]),
        ("messages", [{"role": "user", "content": 5}]),
        ("messages", [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
        ("stream", "yes"),
        ("model", 5),
        ("reasoning_format", "loud"),
        ("include_stop_str_in_output", 1),
    ],
)
def test_chat_names_the_field_that_is_wrong(http: httpx.Client, field: str, value: object) -> None:
    error = refusal(http, "/v1/chat/completions", chat(**{field: value}))
    assert error["param"] == field and error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", None),
        ("prompt", []),
        ("prompt", ""),
        ("prompt", [[]]),
        ("prompt", [5, "a"]),
        ("prompt", [True]),
        ("prompt", {"text": "a"}),
        ("prompt", [384]),
        ("prompt", [-1]),
        ("prompt", ["a"] * 65),
        ("prompt", ["a"] * 1_000_000),
        ("logprobs", 21),
        ("logprobs", True),
        ("prompt_logprobs", 21),
        ("prompt_logprobs", -1),
        ("echo", "yes"),
        ("max_tokens", 0),
        ("truncate_prompt_tokens", 0),
        ("truncate_prompt_tokens", -2),
    ],
)
def test_completions_name_the_field_that_is_wrong(
    http: httpx.Client, field: str, value: object
) -> None:
    assert refusal(http, "/v1/completions", completion(**{field: value}))["param"] == field


def test_prompts_times_n_is_bounded(http: httpx.Client) -> None:
    error = refusal(http, "/v1/completions", completion(prompt=["a"] * 5, n=16))
    assert error["param"] == "n" and "80" in error["message"] and "64" in error["message"]


@pytest.mark.parametrize("field", sorted(REFUSED.keys() - ChatBody.model_fields))
def test_fields_that_would_be_dropped_are_refused(http: httpx.Client, field: str) -> None:
    error = refusal(http, "/v1/chat/completions", chat(**{field: {"something": ["else"]}}))
    assert (error["param"], error["code"]) == (field, "unsupported_field")
    for neutral in REFUSED[field]:
        answer = http.post("/v1/chat/completions", content=chat(**{field: neutral}))
        assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{",
        b"null",
        b'{"n": NaN}',
        b'{"n": Infinity}',
        b'{"n": 1e999}',
        b'{"n": 1, "n": 2}',
        b'{"model": "\\ud800"}',
        b'{"model": "\xed\xa0\x80"}',
        b'{"model": "\xff"}',
        b'{"n": ' + b"1" * 5000 + b"}",
        b'{"a":' * 100_000,
        b"[" * 100_000,
        '{"model": "tiny"}'.encode("utf-16"),
    ],
)
def test_what_is_not_json(http: httpx.Client, body: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/completions"):
        refusal(http, path, body)


def test_a_nul_is_text_like_any_other(http: httpx.Client) -> None:
    body = chat(messages=[{"role": "user", "content": "a\0b"}])
    assert http.post("/v1/chat/completions", content=body).status_code == 200


@pytest.mark.parametrize(
    ("fields", "numbers"),
    [
        ({"prompt": [5] * 257}, ("257", "256")),
        ({"prompt": [5] * 256}, ("256", "256")),
        ({"prompt": [5] * 200, "max_tokens": 57}, ("257", "256")),
        ({"prompt": "a" * (4 * MEBIBYTE)}, ("at least", "256")),
    ],
)
def test_what_exceeds_the_context_is_refused_with_both_numbers(
    http: httpx.Client, fields: dict[str, Any], numbers: tuple[str, str]
) -> None:
    error = refusal(http, "/v1/completions", completion(**fields))
    assert error["code"] == "context_length_exceeded"
    assert all(number in error["message"] for number in numbers)


def test_the_longest_prompt_that_fits_is_answered(http: httpx.Client) -> None:
    answer = http.post("/v1/completions", content=completion(prompt=[5] * 254))
    assert answer.json()["usage"]["total_tokens"] == 256


def test_absurd_numbers_cost_nothing(http: httpx.Client) -> None:
    body = chat(n=10**9)
    http.post("/v1/chat/completions", content=body)
    seconds = []
    for _ in range(10):
        start = time.perf_counter()
        assert http.post("/v1/chat/completions", content=body).status_code == 400
        seconds.append(time.perf_counter() - start)
    # The best of ten, since the machine may be busy with other work.
    assert min(seconds) < 0.05


def test_long_names_are_not_echoed(http: httpx.Client) -> None:
    body = chat(model="m" * 100_000)
    assert refusal(http, "/v1/chat/completions", body, 404)["code"] == "model_not_found"


def test_unknown_routes_and_methods(http: httpx.Client) -> None:
    assert http.get("/v1/nothing").json()["error"]["type"] == "not_found_error"
    answer = http.get("/v1/chat/completions")
    assert answer.status_code == 405 and answer.headers["allow"] == "POST"
    assert answer.json()["error"]["message"] == "Method Not Allowed"


def test_a_body_over_the_limit_is_not_read(server: Running) -> None:
    with socket.create_connection((server.server.host, server.server.port), 10) as peer:
        head = (
            f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: {64 * MEBIBYTE}\r\n\r\n"
        )
        peer.sendall(head.encode())
        assert peer.recv(4096).startswith(b"HTTP/1.1 413 ")


def test_a_body_without_a_length_is_counted() -> None:
    with running(ScriptedExecutor(), limits=Limits(max_body_bytes=1000)) as server:
        address = (server.server.host, server.server.port)
        with socket.create_connection(address, 10) as peer:
            head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
            peer.sendall(head + (b"6\r\n      \r\n" * 167))
            answer = b"".join(iter(partial(peer.recv, 4096), b""))
            assert answer.startswith(b"HTTP/1.1 413 ") and b"request_too_large" in answer


def test_headers_are_bounded(server: Running) -> None:
    with socket.create_connection((server.server.host, server.server.port), 10) as peer:
        peer.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 100_000)
        assert peer.recv(4096).startswith(b"HTTP/1.1 4")


def test_a_body_that_trickles_in_is_given_up() -> None:
    with running(ScriptedExecutor(), limits=Limits(body_seconds=0.1)) as server:
        address = (server.server.host, server.server.port)
        with socket.create_connection(address, 10) as peer:
            peer.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
            assert peer.recv(4096).startswith(b"HTTP/1.1 408 ")


def test_a_wrong_key_is_turned_away() -> None:
    with (
        running(ScriptedExecutor(), api_key="clé") as server,
        httpx.Client(base_url=server.url) as http,
    ):

        def status(path: str, key: bytes | None) -> int:
            headers = [] if key is None else [(b"Authorization", key)]
            return http.get(path, headers=headers).status_code

        right = "Bearer clé".encode()
        for path in ("/v1/models", "/metrics", "/version"):
            assert status(path, right) == 200
            for wrong in (None, b"", b"Bearer", b"Bearer cl", b"Basic cl\xc3\xa9"):
                assert status(path, wrong) == 401
        assert status("/health", None) == 200
        answer = http.get("/v1/models")
        assert answer.json()["error"]["type"] == "authentication_error"
        assert answer.json()["error"]["code"] == "invalid_api_key"
