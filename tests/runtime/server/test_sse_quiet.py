"""Comments in quiet streams: where they are asked for, between events, and nowhere else."""

import threading

import httpx
import pytest

from runtime.server.limits import Limits
from runtime.server.sse_quiet import COMMENT
from tests.runtime.server.harness import MODEL, ScriptedExecutor, running
from tests.runtime.server.test_sse import payloads


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "Hi", "max_tokens": 5}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "Hi"}]}),
        ("/v1/responses", {"input": "Hi", "max_output_tokens": 5}),
    ],
)
def test_a_stream_that_waits_says_so(path: str, body: dict[str, object]) -> None:
    gate = threading.Event()
    with running(
        ScriptedExecutor(hold=lambda: gate.wait(60)), limits=Limits(comment_seconds=0.01)
    ) as server:
        asked = {"model": MODEL, "stream": True, **body}
        with httpx.stream("POST", f"{server.url}{path}", json=asked, timeout=60) as answer:
            pieces, raw = answer.iter_raw(), b""
            while raw.count(COMMENT) < 2:
                raw += next(pieces)
            gate.set()
            raw += b"".join(pieces)
    events = [block for block in raw.split(b"\n\n") if block != COMMENT.strip()]
    clean = b"\n\n".join(events)
    assert b": waiting" not in clean, "a comment stands between events"
    if "responses" in path:
        assert b"response.incomplete" in events[-2]
    else:
        assert payloads(clean)[-1]["choices"][0]["finish_reason"] == "length"


def test_lines_of_json_have_no_comments() -> None:
    gate = threading.Event()
    threading.Timer(0.1, gate.set).start()
    with running(
        ScriptedExecutor(hold=lambda: gate.wait(60)), limits=Limits(comment_seconds=0.01)
    ) as server:
        body = {"model": MODEL, "prompt": "a", "options": {"num_predict": 3}}
        text = httpx.post(f"{server.url}/api/generate", json=body, timeout=60).text
    assert all(line.startswith("{") for line in text.splitlines())
