"""Copies go to the shadow by every route that answers, at the lowest priority."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from runtime.engine.request import Request
from runtime.server.registry import Registry
from runtime.server.registry_models import Loaded, ModelSettings
from runtime.server.registry_names import parse_alias, parse_shadow
from tests.runtime.server.harness import CountingThread, ScriptedExecutor, make_service, serving
from tests.waiting import eventually

HI = [{"role": "user", "content": "Hi"}]


class Noting:
    """A model that remembers what it was asked."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.asked: list[Request] = []

    def settings(self) -> ModelSettings:
        return ModelSettings(self.name, self._load)

    def _load(self) -> Loaded:
        service, _, thread = make_service(ScriptedExecutor())
        service.model_name = self.name
        submit = thread.submit

        def noted(request: Request, *rest: Any) -> None:
            self.asked.append(request)
            submit(request, *rest)

        assert isinstance(thread, CountingThread)
        thread.submit = noted  # type: ignore[method-assign, assignment]
        return Loaded(service)


ROUTES: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": "Hi", "max_tokens": 2, "priority": -5}),
    ("/v1/completions", {"prompt": "Hi", "max_tokens": 2, "stream": True}),
    ("/v1/chat/completions", {"messages": HI, "max_tokens": 2}),
    ("/v1/responses", {"input": "Hi", "max_output_tokens": 2}),
    ("/api/chat", {"messages": HI, "options": {"num_predict": 2}}),
    ("/api/generate", {"prompt": "Hi", "options": {"num_predict": 2}}),
    ("/v2/models/prod/generate", {"text_input": "Hi"}),
    ("/v2/models/a/versions/1/generate_stream", {"text_input": "Hi"}),
]


@pytest.fixture(scope="module")
def stage() -> Iterator[tuple[httpx.Client, Noting, Noting]]:
    a, b = Noting("a"), Noting("b")
    registry = Registry(
        [a.settings(), b.settings()], [parse_alias("prod=a")], shadows=[parse_shadow("a=b:1")]
    )
    registry.load("a")
    registry.load("b")
    with serving(registry) as http:
        yield http, a, b


@pytest.mark.parametrize(("path", "body"), ROUTES)
def test_every_route_that_answers_is_copied(
    stage: tuple[httpx.Client, Noting, Noting], path: str, body: dict[str, Any]
) -> None:
    http, a, b = stage
    a.asked.clear()
    b.asked.clear()
    assert http.post(path, json={"model": "a", **body}).status_code == 200
    eventually(lambda: len(b.asked) == 1)
    assert len(a.asked) == 1, "a copy goes to the shadow"
    assert b.asked[0].prompt_tokens == a.asked[0].prompt_tokens
    assert b.asked[0].max_tokens == a.asked[0].max_tokens
    assert b.asked[0].priority == 2**31 - 1 > a.asked[0].priority
    eventually(lambda: b'outcome="answered"' in http.get("/metrics").content)


def test_what_asks_for_no_answer_is_not_copied(
    stage: tuple[httpx.Client, Noting, Noting],
) -> None:
    http, _, b = stage
    b.asked.clear()
    before = counts(http)
    for path, body in (("/tokenize", {"prompt": "Hi"}), ("/api/show", {})):
        assert http.post(path, json={"model": "a", **body}).status_code == 200
    assert counts(http) == before and not b.asked


def counts(http: httpx.Client) -> list[str]:
    lines = http.get("/metrics").text.splitlines()
    return [line for line in lines if line.startswith("coldpress_shadow_requests_total")]
