"""Bad input: a small 400 that names the field, and a server that goes on."""

import contextlib
import json
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h11
import httpx
import pytest

from runtime.server.access import Access
from runtime.server.connections import FREE_PIECES
from runtime.server.keys import KeyRing
from runtime.server.limits import Limits
from runtime.server.refused import REFUSED
from runtime.server.schemas import ChatBody
from tests.runtime.server.harness import MODEL, Running, ScriptedExecutor, running
from tests.runtime.server.images import IMAGES, image_requests
from tests.waiting import eventually

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


@pytest.mark.parametrize(("text", "status"), [("a\0b", 400), ("a\\\0", 400), ("a\\u0000", 200)])
def test_a_nul_is_refused(http: httpx.Client, text: str, status: int) -> None:
    """A3. As JSON writes it; what only looks like it is text."""
    body = chat(messages=[{"role": "user", "content": text}])
    assert http.post("/v1/chat/completions", content=body).status_code == status


@pytest.mark.parametrize(
    ("fields", "numbers"),
    [
        ({"prompt": [5] * 257}, ("257", "256")),
        ({"prompt": [5] * 256}, ("256", "256")),
        ({"prompt": [5] * 200, "max_tokens": 57}, ("257", "256")),
        ({"prompt": "a" * 8_000_000}, ("at least", "256")),
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


ABSURD = (
    ("n", "/v1/chat/completions", chat(n=10**9)),
    ("best_of", "/v1/completions", completion(best_of=10**9)),
    ("top_logprobs", "/v1/chat/completions", chat(logprobs=True, top_logprobs=10**6)),
    ("prompt", "/v1/completions", completion(prompt=["a"] * 10**6)),
)


@pytest.mark.parametrize(("field", "path", "body"), ABSURD, ids=[field for field, *_ in ABSURD])
def test_absurd_numbers_cost_nothing(
    http: httpx.Client, field: str, path: str, body: bytes
) -> None:
    """A1: refused before anything is made of it."""
    assert refusal(http, path, body)["param"] == field
    before = resident_bytes()
    seconds = []
    for _ in range(5):
        start = time.process_time()
        assert http.post(path, content=body).status_code == 400
        seconds.append(time.process_time() - start)
    # Processor time, the client's of sending 5 MB included: the machine may be busy, and slow.
    assert min(seconds) < (0.05 if len(body) < MEBIBYTE else 0.5)
    assert resident_bytes() - before < 5 * MEBIBYTE


def resident_bytes() -> int:
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def test_long_names_are_not_echoed(http: httpx.Client) -> None:
    body = chat(model="m" * 100_000)
    error = refusal(http, "/v1/chat/completions", body, 404)
    assert (error["type"], error["code"]) == ("not_found", "model_not_found")


def test_unknown_routes_and_methods(http: httpx.Client) -> None:
    missing = http.get("/v1/nothing").json()["error"]
    assert missing["type"] == "invalid_request_error" and "/v1/nothing" in missing["message"]
    meant = http.post("/chat/completions").json()["error"]["message"]
    assert meant == "there is no route /chat/completions; did you mean /v1/chat/completions?"
    answer = http.get("/v1/chat/completions")
    assert answer.status_code == 405 and answer.headers["allow"] == "POST"
    assert answer.json()["error"]["message"] == "/v1/chat/completions takes POST, not GET"


def exchange(server: Running, *parts: bytes) -> bytes:
    """All that comes back until the server closes the connection, whatever is still being sent."""
    with socket.create_connection((server.server.host, server.server.port), 20) as peer:
        with contextlib.suppress(ConnectionError):
            for part in parts:
                peer.sendall(part)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while data := peer.recv(65536):
                answer += data
        return answer


POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"


def test_a_body_over_the_limit_is_not_read(server: Running) -> None:
    """A2: 64 MiB, announced and begun."""
    head = POST + f"Content-Length: {64 * MEBIBYTE}\r\n\r\n".encode()
    answer = exchange(server, head, b" " * 100_000)
    assert answer.startswith(b"HTTP/1.1 413 ") and b"request_too_large" in answer
    assert b"connection: close" in answer.lower()


def test_a_body_without_a_length_is_counted(server: Running) -> None:
    """A2: 64 MiB in chunks; the rest of it is not waited for."""
    parts = [b"100000\r\n" + b" " * MEBIBYTE + b"\r\n"] * 64
    answer = exchange(server, POST + b"Transfer-Encoding: chunked\r\n\r\n", *parts)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 413 ")
    # A reset may overtake the answer; a client that stops in time reads it.
    answer = exchange(server, POST + b"Transfer-Encoding: chunked\r\n\r\n", *parts[:9])
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_tiny_chunks_by_the_megabyte_are_cut_off(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A2: 3 MB of 6-byte chunks, which is less than a body may have, in work instead of time."""
    num_pieces = 0
    next_event = h11.Connection.next_event

    def counted(connection: h11.Connection) -> Any:
        nonlocal num_pieces
        event = next_event(connection)
        num_pieces += isinstance(event, h11.Data)
        return event

    monkeypatch.setattr(h11.Connection, "next_event", counted)
    before = resident_bytes()
    chunks = b"6\r\n      \r\n" * 250_000
    answer = exchange(server, POST + b"Transfer-Encoding: chunked\r\n\r\n", chunks)
    # A reset may overtake the answer while the client is still sending.
    assert answer == b"" or answer.startswith(b"HTTP/1.1 413 ")
    assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200
    # Six bytes earn a tenth of a piece.
    assert num_pieces <= FREE_PIECES * 1.2
    assert resident_bytes() - before < 16 * MEBIBYTE


def test_a_body_in_many_pieces_is_read(server: Running) -> None:
    body = completion(prompt="Hi" + " " * 100, stop=["x" * 900] * 16)
    size = len(body)
    few = b"".join(b"1\r\n%c\r\n" % byte for byte in body[: FREE_PIECES - 1])
    rest = b"%x\r\n%b\r\n" % (size - FREE_PIECES + 1, body[FREE_PIECES - 1 :])
    head = POST + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert exchange(server, head, few, rest, b"0\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    assert exchange(server, head, few, few).startswith(b"HTTP/1.1 413 ")


def test_a_client_that_leaves_amid_its_body_leaves_no_trace(
    server: Running, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the server itself says of an exception that nobody handled does not propagate."""
    monkeypatch.setattr(logging.getLogger("uvicorn"), "propagate", True)
    requests = 'coldpress_http_requests_total{method="POST",status="499"}'
    with socket.create_connection((server.server.host, server.server.port), 20) as peer:
        peer.sendall(POST + b"Content-Length: 9\r\n\r\n{")
    eventually(lambda: requests in httpx.get(f"{server.url}/metrics", timeout=60).text)
    assert caplog.text == ""


def test_headers_are_bounded(server: Running) -> None:
    """A2 and W6: a header of 1 MiB, a request id for example."""
    answer = exchange(server, POST + b"X-Request-Id: " + b"x" * MEBIBYTE + b"\r\n\r\n")
    assert answer == b"" or answer.startswith(b"HTTP/1.1 431 ")
    answer = exchange(server, POST + b"X-Request-Id: " + b"x" * 40_000)
    assert answer.startswith(b"HTTP/1.1 431 ") and len(answer) < 4096
    error = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    assert error["type"] == "invalid_request_error"


def test_what_is_not_http_is_400_and_small(server: Running) -> None:
    answer = exchange(server, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 hello\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ") and len(answer) < 1024


def test_requests_that_trickle_in_are_given_up() -> None:
    """A2: slow-loris, in the head, in the body and between two requests."""
    limits = Limits(body_seconds=0.2, header_seconds=0.2)
    with running(ScriptedExecutor(), limits=limits) as server:
        start = time.monotonic()
        body = exchange(server, POST + b"Content-Length: 9\r\n\r\n{")
        assert body.startswith(b"HTTP/1.1 408 ")
        for beginning in (b"", b"POST", POST, POST + b"X-A: b"):
            assert exchange(server, beginning).startswith(b"HTTP/1.1 408 "), beginning
        health = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
        assert exchange(server, health + b"GET /hea").startswith(b"HTTP/1.1 200 ")
        assert time.monotonic() - start < 20, "each was closed in its time"
        # A head that takes its time, but not too much, is fine.
        assert httpx.get(f"{server.url}/health", timeout=60).status_code == 200


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_what_goes_back_in_headers_holds_no_line_end(server: Running, path: str) -> None:
    """W6: ids of clients with line ends in them."""
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nConnection: close\r\n"
    for value in (b"a\rSet-Cookie: b=c", b"a\x00b", b"a\nSet-Cookie: b=c"):
        request = head.encode() + b"X-Request-Id: " + value + b"\r\n\r\n{}"
        answer = exchange(server, request)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"set-cookie" not in answer.lower()


def test_logs_hold_no_prompts(caplog: pytest.LogCaptureFixture) -> None:
    """W6: at the most talkative level, of what succeeds, is refused, and fails."""
    secret = "xylophones-in-a-row"
    caplog.set_level(logging.DEBUG)
    steps = iter([True] * 4)

    def fail_later() -> None:
        if next(steps, None) is None:
            raise RuntimeError("the plates are jammed")

    with running(ScriptedExecutor(hold=fail_later)) as server:
        for fields in ({"max_tokens": 2}, {"max_tokens": -1}, {"max_tokens": 50}):
            body = completion(prompt=f"I play {secret}", **fields)
            httpx.post(f"{server.url}/v1/completions", content=body, timeout=60)
    assert any("rolled back" in record.message for record in caplog.records)
    assert secret not in caplog.text and "play" not in caplog.text


FETCHING = (
    "socket.connect",
    "socket.getaddrinfo",
    "socket.gethostbyname",
    "socket.sendto",
    "socket.sendmsg",
)


@contextlib.contextmanager
def fetched() -> Iterator[list[str]]:
    """What other threads than the client's looked up, connected to, or opened by the name that a
    client gave; the interpreter itself tells. Processes that render have no network, see A5."""
    found: list[str] = []
    client = threading.get_ident()
    is_watching = True

    def hook(event: str, args: tuple[object, ...]) -> None:
        if not is_watching or threading.get_ident() == client:
            return
        if event in FETCHING or (event == "open" and str(args[0]) == "/etc/passwd"):
            found.append(event)

    sys.addaudithook(hook)
    yield found
    is_watching = False


def test_the_watch_sees_what_is_fetched(server: Running) -> None:
    """Else the next test could not fail."""

    def fetch() -> None:
        with contextlib.suppress(OSError):
            socket.create_connection((server.server.host, server.server.port)).close()
        Path("/etc/passwd").read_bytes()

    with fetched() as found:
        thread = threading.Thread(target=fetch)
        thread.start()
        thread.join()
    assert {*found} >= {"socket.connect", "open"}


@pytest.mark.parametrize("url", IMAGES)
def test_images_are_refused_and_nothing_is_fetched(http: httpx.Client, url: str) -> None:
    """W1: no name is looked up, no connection opened and no file read."""
    with fetched() as found:
        for path, body, field in image_requests(url):
            if field is not None:
                assert refusal(http, path, json.dumps(body).encode())["param"] == field
            else:
                assert http.post(path, json=body).status_code == 200
    assert found == []


def test_a_wrong_key_is_turned_away() -> None:
    with (
        running(ScriptedExecutor(), access=Access(KeyRing.of("clé"))) as server,
        httpx.Client(base_url=server.url, timeout=60) as http,
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
