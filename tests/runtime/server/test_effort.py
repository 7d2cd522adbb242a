"""Reasoning effort: told to templates that know it, refused where it would be dropped."""

import httpx
import pytest

from runtime.engine.request import RequestError
from runtime.server.effort import effort_variables
from runtime.service import GenerationService
from runtime.text.template import ChatTemplate
from tests.runtime.server.harness import Running, ScriptedExecutor, running, tiny_tokenizer

SWITCH = "{% if enable_thinking is false %}<think></think>{% endif %}"
LEVELS = "{{ reasoning_effort }}"


def service(source: str | None) -> GenerationService:
    template = None if source is None else ChatTemplate(source)
    engine: object = None
    return GenerationService(engine, tiny_tokenizer(), template, "m", 100)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("source", "effort", "variables"),
    [
        (LEVELS, "high", {"reasoning_effort": "high"}),
        (LEVELS, "none", {"reasoning_effort": "none"}),
        (SWITCH, "none", {"enable_thinking": False}),
        (SWITCH, "medium", {}),
        ("plain", "none", {}),
        ("plain", "medium", {}),
        (None, "none", {}),
        ("plain", None, {}),
    ],
)
def test_what_the_template_is_told(
    source: str | None, effort: str | None, variables: dict[str, object]
) -> None:
    assert effort_variables(service(source), effort, "x") == variables


@pytest.mark.parametrize(
    ("source", "effort"), [("plain", "high"), (SWITCH, "low"), (None, "high"), ("</think>", "none")]
)
def test_what_would_be_dropped_is_refused(source: str | None, effort: str) -> None:
    with pytest.raises(RequestError, match=f"knows no effort of '{effort}'; leave 'x' out") as no:
        effort_variables(service(source), effort, "x")
    assert (no.value.param, no.value.code) == ("x", "unsupported_field")


def ask(server: Running, path: str, **fields: object) -> httpx.Response:
    return httpx.post(f"{server.url}{path}", json={"model": "tiny", **fields}, timeout=60)


def test_every_route_with_a_chat_tells_it() -> None:
    hi = [{"role": "user", "content": "Hi"}]
    with running(ScriptedExecutor()) as server:
        server.service.template = ChatTemplate("Effort: {{ reasoning_effort }}.")
        sizes = []
        for effort in ("low", "lowest"):
            chat = ask(server, "/v1/chat/completions", messages=hi, reasoning_effort=effort)
            other = ask(server, "/v1/responses", input="Hi", reasoning={"effort": effort})
            old = ask(server, "/api/chat", messages=hi, think=effort, stream=False)
            sizes.append(chat.json()["usage"]["prompt_tokens"])
            assert other.json()["usage"]["input_tokens"] == sizes[-1]
            assert old.json()["prompt_eval_count"] == sizes[-1]
        assert sizes[0] < sizes[1]
        server.service.template = ChatTemplate("plain")
        for path, fields, param in (
            (
                "/v1/chat/completions",
                {"messages": hi, "reasoning_effort": "low"},
                "reasoning_effort",
            ),
            ("/v1/responses", {"input": "Hi", "reasoning": {"effort": "low"}}, "reasoning"),
        ):
            refused = ask(server, path, **fields)
            assert refused.status_code == 400 and refused.json()["error"]["param"] == param
