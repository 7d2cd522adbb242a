"""Keys, limits, origins, TLS, logs and traces, over HTTP."""

import io
import json
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from quant.format.errors import InputError
from runtime.server.access import Access, Tls
from runtime.server.access_log import AccessLog
from runtime.server.guesses import FREE_GUESSES
from runtime.server.keys import ApiKey, KeyRing
from tests.runtime.engine.fake_executor import FakeExecutor
from tests.runtime.server.harness import MODEL, Running, ScriptedExecutor, running

CHAT = {
    "model": MODEL,
    "messages": [{"role": "user", "content": "A secret prompt"}],
    "max_tokens": 3,
}
ALICE, BOB = "alice-has-this-key", "bob-has-another-one"


def key(name: str, secret: str, **limits: Any) -> ApiKey:
    return ApiKey(name, sha256(secret.encode()).digest(), **limits)


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


def http(server: Running) -> httpx.Client:
    return httpx.Client(base_url=server.url, timeout=60)


def ask(client: httpx.Client, secret: str) -> httpx.Response:
    return client.post("/v1/chat/completions", json=CHAT, headers=bearer(secret))


@pytest.fixture
def guarded() -> Iterator[Running]:
    ring = KeyRing([key("alice", ALICE, admin=True), key("bob", BOB, requests_per_minute=2)])
    with running(ScriptedExecutor(), access=Access(ring)) as server:
        yield server


def test_each_key_has_limits_and_counters_of_its_own(guarded: Running) -> None:
    with http(guarded) as client:
        for _ in range(2):
            assert ask(client, BOB).status_code == 200
        refused = ask(client, BOB)
        assert refused.status_code == 429 and int(refused.headers["retry-after"]) >= 1
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert ask(client, ALICE).status_code == 200
        text = client.get("/metrics", headers=bearer(ALICE)).text
    assert 'coldpress_key_requests_total{key="bob"} 2.0' in text
    assert 'coldpress_key_refused_total{key="bob"} 1.0' in text
    assert 'coldpress_key_answer_tokens_total{key="alice"} 3.0' in text
    assert 'coldpress_key_running{key="bob"} 0.0' in text


def test_only_an_admin_loads_models(guarded: Running) -> None:
    path = f"/v1/admin/models/{MODEL}/load"
    with http(guarded) as client:
        refused = client.post(path, headers=bearer(BOB))
        assert (refused.status_code, refused.json()["error"]["type"]) == (403, "permission_error")
        assert client.post(path, headers=bearer(ALICE)).status_code < 400


@pytest.mark.parametrize("path", ["/metrics", "/tokenize", "/v1/models", "/props", "/api/tags"])
def test_every_route_but_health_needs_a_key(guarded: Running, path: str) -> None:
    with http(guarded) as client:
        assert client.get(path).status_code == 401
        assert client.get("/health").status_code == 200


@pytest.mark.parametrize("given", ["", "Bearer", f"Basic {ALICE}", "Bearer clé", ALICE])
def test_what_is_no_key_is_401_in_openais_shape(guarded: Running, given: str) -> None:
    with http(guarded) as client:
        headers = {b"Authorization": given.encode()}
        answer = client.post("/v1/chat/completions", json=CHAT, headers=headers)
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    with (
        pytest.raises(openai.AuthenticationError),
        openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="wrong", max_retries=0) as client,
    ):
        client.models.list()


def test_guessing_does_not_pay(guarded: Running) -> None:
    with http(guarded) as client:
        codes = [ask(client, f"guess {number}").status_code for number in range(FREE_GUESSES + 3)]
        assert codes == [401] * FREE_GUESSES + [429] * 3
        # The right key has to wait as well: else a guess would show by its answer.
        waiting = ask(client, ALICE)
    assert waiting.status_code == 429 and int(waiting.headers["retry-after"]) >= 1


def test_keys_share_no_pages() -> None:
    """The same prompt twice: found in the cache by its own key, not by another."""
    ring = KeyRing([key("alice", ALICE), key("bob", BOB)])
    executor = FakeExecutor(num_pages=64, page_size=4, vocab_size=384, max_positions=128)
    with running(executor, access=Access(ring)) as server, http(server) as client:
        cached = []
        for secret in (ALICE, ALICE, BOB):
            usage = ask(client, secret).json()["usage"]
            cached.append(usage["prompt_tokens_details"]["cached_tokens"])
    assert cached[0] == 0 and cached[1] > 0 and cached[2] == 0


def test_origins_are_closed_unless_named() -> None:
    asked = {"Origin": "https://app.example", "Access-Control-Request-Method": "POST"}
    with running(ScriptedExecutor()) as server, http(server) as client:
        answer = client.options("/v1/chat/completions", headers=asked)
        assert "access-control-allow-origin" not in answer.headers
    access = Access(origins=("https://app.example",))
    with running(ScriptedExecutor(), access=access) as server, http(server) as client:
        allowed = client.options("/v1/chat/completions", headers=asked)
        assert allowed.headers["access-control-allow-origin"] == "https://app.example"
        other = client.options(
            "/v1/chat/completions", headers=asked | {"Origin": "https://evil.example"}
        )
        assert "access-control-allow-origin" not in other.headers


def test_a_page_of_a_named_origin_may_send_and_read_what_clients_do() -> None:
    page = "https://app.example"
    with running(ScriptedExecutor(), access=Access(origins=(page,))) as server, http(server) as app:
        asked = {
            "Origin": page,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
        }
        allowed = app.options("/v1/chat/completions", headers=asked)
        assert allowed.status_code == 200
        assert "x-stainless-os" in allowed.headers["access-control-allow-headers"].lower()
        sent = {"Origin": page, "Sec-Fetch-Site": "cross-site"}
        answer = app.post("/v1/chat/completions", json=CHAT, headers=sent)
        assert answer.status_code == 200
        assert "Retry-After" in answer.headers["access-control-expose-headers"]


@pytest.mark.parametrize("origins", [(), ("https://app.example",)])
def test_what_a_foreign_page_sends_is_not_run(origins: tuple[str, ...]) -> None:
    """Without being asked: browsers ask first only for what a form could not send."""
    access = Access(origins=origins)
    with running(ScriptedExecutor(), access=access) as server, http(server) as client:
        sent = {"Origin": "https://evil.example", "Content-Type": "text/plain"}
        for site in ("cross-site", "same-site"):
            foreign = client.post(
                "/v1/chat/completions", json=CHAT, headers={**sent, "Sec-Fetch-Site": site}
            )
            assert foreign.status_code == 403
            assert foreign.json()["error"]["type"] == "permission_error"
        assert server.thread.num_accepted == 0
        for own in ({}, {"Sec-Fetch-Site": "same-origin", "Origin": server.url}):
            answer = client.post("/v1/chat/completions", json=CHAT, headers=own)
            assert answer.status_code == 200
        assert client.get("/", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_line_for_each_request_without_its_text(form: Any) -> None:
    lines = io.StringIO()
    access = Access(KeyRing([key("alice", ALICE)]), log=AccessLog(form, lines))
    with running(ScriptedExecutor(), access=access) as server, http(server) as client:
        headers = bearer(ALICE) | {"X-Request-Id": "mine-1"}
        answer = client.post("/v1/chat/completions", json=CHAT, headers=headers)
        client.get("/v1/models/%0d%0aforged", headers=bearer("wrong-key-of-length"))
    text = lines.getvalue()
    assert answer.headers["x-request-id"] == "mine-1"
    first, second = text.splitlines()
    assert "secret" not in text.lower() and ALICE not in text and "wrong-key" not in text
    if form == "json":
        found = json.loads(first)
        assert (found["status"], found["key"], found["request_id"]) == (200, "alice", "mine-1")
        assert found["answer_tokens"] == 3 and found["model"] == MODEL and found["ms"] >= 0
        assert json.loads(second)["status"] == 401
    else:
        assert "status=200" in first and 'key="alice"' in first and "status=401" in second


@pytest.mark.parametrize("given", ["a\tb", "x" * 129, "é", ""])
def test_ids_that_are_not_fit_to_be_repeated_are_replaced(given: str) -> None:
    with running(ScriptedExecutor()) as server, http(server) as client:
        answer = client.get("/health", headers={b"X-Request-Id": given.encode()})
    assert answer.headers["x-request-id"] != given and len(answer.headers["x-request-id"]) == 32


def test_spans_have_counts_and_a_parent_but_no_text() -> None:
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    access = Access(tracer=provider.get_tracer("test"))
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    with running(ScriptedExecutor(), access=access) as server, http(server) as client:
        client.post("/v1/chat/completions", json=CHAT, headers={"traceparent": parent})
    (span,) = exporter.get_finished_spans()
    attributes = dict(span.attributes or {})
    assert span.parent is not None and f"{span.parent.span_id:016x}" == "b7ad6b7169203331"
    assert attributes["gen_ai.usage.completion_tokens"] == 3
    assert attributes["gen_ai.usage.output_tokens"] == 3
    assert attributes["gen_ai.response.model"] == MODEL
    assert attributes["gen_ai.request.temperature"] == 1.0 == attributes["gen_ai.request.top_p"]
    e2e, first = (attributes[f"gen_ai.latency.{name}"] for name in ("e2e", "time_to_first_token"))
    assert isinstance(e2e, float) and isinstance(first, float) and e2e >= first > 0
    assert attributes["http.response.status_code"] == 200
    assert "secret" not in str(span.to_json()).lower()


def certificate(directory: Path) -> Tls:
    """Self-signed, for 127.0.0.1."""
    secret = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(secret.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(secret, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (directory / "cert.pem").write_bytes(signed.public_bytes(pem))
    plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (directory / "key.pem").write_bytes(secret.private_bytes(pem, *plain))
    return Tls(directory / "cert.pem", directory / "key.pem")


def test_https(tmp_path: Path) -> None:
    tls = certificate(tmp_path)
    trusted = ssl.create_default_context(cafile=str(tls.certificate))
    trusted.check_hostname = False
    with running(ScriptedExecutor(), tls=tls) as server:
        assert server.url.startswith("https://")
        with httpx.Client(base_url=server.url, verify=trusted, timeout=60) as client:
            assert client.post("/v1/chat/completions", json=CHAT).status_code == 200


def test_a_certificate_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.pem: there is no such file"):
        Tls(tmp_path / "none.pem", tmp_path / "key.pem")


def test_what_is_no_certificate(tmp_path: Path) -> None:
    tls = certificate(tmp_path)
    with pytest.raises(InputError, match=r"no certificate and its key in PEM form"):
        Tls(tls.certificate, tls.certificate)
    (tmp_path / "text.pem").write_text("not a certificate")
    with pytest.raises(InputError, match=r"text\.pem and .*key\.pem are no certificate"):
        Tls(tmp_path / "text.pem", tls.key)


@pytest.mark.parametrize("origin", ["app.example", "https://app.example/", "", "https://a/b"])
def test_an_origin_that_no_browser_sends(origin: str) -> None:
    with pytest.raises(InputError, match=r"--cors-origin .* looks like https://app\.example"):
        Access(origins=(origin,))
    assert Access(origins=("*", "http://localhost:3000", "chrome-extension://abc")).origins
