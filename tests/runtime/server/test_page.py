"""The page: what it may load, and a conversation in a real browser."""

import re
import threading
from collections.abc import Iterator

import httpx
import pytest

from runtime.server.access import Access
from runtime.server.keys import KeyRing
from runtime.server.page import assets
from tests.runtime.server.browser import Page, browsing, chromium
from tests.runtime.server.harness import Running, ScriptedExecutor, running, tiny_tokenizer

HOSTILE = "**Bold** <img src=x onerror=alert(1)> `<b>`\n\n```py\n<script>alert(2)</script>\n```\n\n"
ENTER = ("Enter", 13)


def test_the_page_loads_nothing_from_elsewhere(http: httpx.Client) -> None:
    answer = http.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    policy = answer.headers["content-security-policy"].split("; ")
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
    assert not [rule for rule in policy if "unsafe" in rule or "*" in rule or "http" in rule]
    named = re.findall(r'(?:src|href)="([^"#]+)"', answer.text)
    assert {"page/app.js", "page/style.css", "page/icon.svg"} <= set(named)
    for name in named:
        part = http.get(f"/{name}")
        assert part.status_code == 200 and part.headers["x-content-type-options"] == "nosniff"
    for name, content in assets().items():
        text = content.decode().replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text, f"{name} names another place"
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", text)


def test_a_part_that_the_browser_has_is_not_sent_again(http: httpx.Client) -> None:
    tag = http.get("/page/app.js").headers["etag"]
    again = http.get("/page/app.js", headers={"If-None-Match": tag})
    assert again.status_code == 304 and again.content == b""
    assert http.get("/page/nothing.js").status_code == 404
    assert http.get("/page/__init__.py").status_code == 404
    assert http.head("/").status_code == 200


def test_the_page_is_open_where_the_server_asks_for_a_key() -> None:
    with running(ScriptedExecutor(), access=Access(KeyRing.of("secret"))) as server:
        assert httpx.get(server.url, timeout=60).status_code == 200
        assert httpx.get(f"{server.url}/page/app.js", timeout=60).status_code == 200
        assert httpx.get(f"{server.url}/metrics", timeout=60).status_code == 401


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    path = chromium()
    if path is None:
        pytest.skip("no Chromium is installed, so that nothing can drive the page")
    with browsing(path) as one:
        one.look(1200, 800)
        yield one


def opened(page: Page, server: Running, max_tokens: int = 60) -> None:
    """The page of that server, with its model and greedy sampling chosen."""
    page.open(server.url)
    # The page before it may have looked for a server that has gone.
    page.problems.clear()
    page.wait_for("document.getElementById('model').value === 'tiny'")
    for name, value in (("temperature", "0"), ("max_tokens", str(max_tokens))):
        page.value(f"document.querySelector('[name={name}]').value = '{value}'")


def said(page: Page, text: str) -> None:
    page.value("document.getElementById('prompt').focus()")
    page.type(text)
    page.press(*ENTER)


def test_an_answer_is_streamed_and_shown_as_text(page: Page) -> None:
    gate, released = threading.Semaphore(40), threading.Event()

    def hold() -> None:
        if not released.is_set():
            gate.acquire(timeout=30)

    script = tiny_tokenizer().encode(HOSTILE, add_special_tokens=False)
    with running(ScriptedExecutor(script, hold=hold)) as server:
        opened(page, server, 150)
        said(page, "Hello <b>you</b>")
        page.wait_for("document.querySelector('.assistant.busy .body')?.textContent.length > 10")
        assert page.value("document.getElementById('send').className") == "send stop"
        released.set()
        gate.release()
        page.wait_for("document.querySelector('.foot') !== null")
        sent = page.value("document.querySelector('.user').textContent")
        shown = page.value("document.querySelector('.body').textContent")
        markup = "script, img, b, a, iframe, [onerror]"
        alien = f"document.querySelectorAll('.body {markup.replace(', ', ', .body ')}').length"
        assert sent == "Hello <b>you</b>" and page.value(alien) == 0
        assert "<img src=x onerror=alert(1)>" in shown and "<script>alert(2)</script>" in shown
        assert page.value("document.querySelector('.body strong').textContent") == "Bold"
        foot = page.value("document.querySelector('.foot').textContent")
        assert "150 tokens" in foot and "tokens/s" in foot and "Cut off at the token limit" in foot
        page.wait_for("document.getElementById('answered').textContent === '1'")
        assert page.value("document.getElementById('context').textContent").endswith("tokens")
        assert page.problems == []


def test_an_answer_can_be_stopped_and_asked_for_again(page: Page) -> None:
    gate = threading.Semaphore(20)
    with running(ScriptedExecutor(hold=lambda: gate.acquire(timeout=30))) as server:
        opened(page, server)
        said(page, "Hello")
        page.wait_for("document.querySelector('.body')?.textContent.length > 0")
        page.press("Escape", 27)
        page.wait_for("document.querySelector('.foot')?.textContent.includes('Stopped')")
        gate.release(1000)
        page.wait_for("document.getElementById('running').textContent === '0'")
        page.click("[data-again]")
        page.wait_for("document.querySelector('.foot')?.textContent.includes('60 tokens')")
        assert page.value("document.querySelectorAll('.assistant').length") == 1
        page.press("n", 78, modifiers=1)
        page.click("#new")
        assert page.value("document.querySelectorAll('.thread > *').length") == 0
        assert page.value("document.getElementById('empty').hidden") is False
        assert page.problems == []


def test_a_failure_is_told_where_it_happened(page: Page) -> None:
    with running(ScriptedExecutor(max_positions=64)) as server:
        opened(page, server)
        said(page, "word " * 200)
        page.wait_for("document.querySelector('.failure')?.textContent.includes('context')")
        assert "Try again" in page.value("document.querySelector('.foot').textContent")
    page.wait_for("document.getElementById('banner').textContent.includes('reached')")


def test_a_key_is_asked_for_and_used(page: Page) -> None:
    with running(ScriptedExecutor(), access=Access(KeyRing.of("secret"))) as server:
        page.open(server.url)
        page.wait_for("document.getElementById('key-dialog').open")
        page.value("document.getElementById('key-input').value = 'secret'")
        page.click("#key-form .primary")
        page.wait_for("document.getElementById('model').value === 'tiny'")
        said(page, "Hello")
        page.wait_for("document.querySelector('.foot') !== null")
        assert page.value("document.querySelector('.failure') === null")
        assert page.value("Object.keys(localStorage).join()").count("key") == 0
