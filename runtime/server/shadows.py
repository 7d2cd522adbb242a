"""Copies of requests to a second model, whose answers are dropped: what it would cost to switch."""

import asyncio
import json
import logging
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, Literal
from urllib.parse import quote

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import Message, Receive, Scope, Send

from runtime.server.record import begin_copy
from runtime.server.registry import Registry
from runtime.server.registry_names import Shadow

_log = logging.getLogger(__name__)

Outcome = Literal["answered", "failed", "dropped"]
_App = Callable[[Scope, Receive, Send], Awaitable[object]]

_MAX_COPIES = 4
"""Copies that run at the same time; further ones are dropped."""
_LOWEST_PRIORITY = 2**31 - 1
_SCOPE = ("type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "root_path",
          "query_string", "client", "server", "app", "state")  # fmt: skip
_UNWANTED = ("stream_options", "user", "safety_identifier", "priority")
_ANSWERS = frozenset(
    (
        *("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"),
        *("/api/generate", "/api/chat", "/api/embed", "/api/embeddings"),
    )
)
_KSERVE = re.compile(r"/v2/models/.+?((?:/versions/[^/]+)?/generate)(?:_stream)?")


class Shadows:
    """Decides which requests are copied, runs the copies, and counts what became of them.

    A copy starts once its original has been answered with 200, so that it cannot delay or fail it;
    it asks nothing of a model that is not loaded or has requests waiting, and takes the lowest
    priority. `counts` is by model, shadow and outcome. random: numbers in [0, 1).
    """

    def __init__(self, registry: Registry, random: Callable[[], float] = random.random) -> None:
        self._registry = registry
        self._random = random
        self._copies: set[asyncio.Task[None]] = set()
        self.counts: Counter[tuple[str, str, Outcome]] = Counter()

    def __bool__(self) -> bool:
        return bool(self._registry.shadows)

    def of(self, model: str) -> list[Shadow]:
        """The shadows that this request to `model` has; a new draw each time."""
        wanted = (one for one in self._registry.shadows if one.model == model)
        return [one for one in wanted if self._random() < one.share]

    def start(self, shadow: Shadow, scope: Scope, fields: dict[str, Any], app: _App) -> None:
        """Send a copy of the request with the body `fields` to `app`, and forget it. Requests that
        ask for no answer have none."""
        path = _path_of_copy(scope["path"], shadow.copy_to)
        if path is None:
            return
        if len(self._copies) >= _MAX_COPIES or not self._has_room(shadow.copy_to):
            self.counts[shadow.model, shadow.copy_to, "dropped"] += 1
            return
        copy = _copied({**scope, "path": path, "raw_path": quote(path).encode()}, shadow, fields)
        task = asyncio.ensure_future(self._run(shadow, copy, app))
        self._copies.add(task)
        task.add_done_callback(self._copies.discard)

    def _has_room(self, name: str) -> bool:
        service = self._registry.models[name].service
        return service is not None and service.engine.stats().num_waiting == 0

    async def _run(self, shadow: Shadow, copy: tuple[Scope, bytes], app: _App) -> None:
        begin_copy(_LOWEST_PRIORITY)
        outcome: Outcome = "failed"
        try:
            if await _status(app, *copy) == 200:
                outcome = "answered"
        except Exception:
            _log.exception("a copy of a request for '%s' failed", shadow.copy_to)
        finally:
            self.counts[shadow.model, shadow.copy_to, outcome] += 1


class ShadowFamilies(Collector):
    """coldpress_shadow_requests."""

    def __init__(self, shadows: Shadows) -> None:
        self._shadows = shadows

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "coldpress_shadow_requests",
            "Copies of requests by what became of them.",
            labels=["model_name", "shadow", "outcome"],
        )
        for labels, count in self._shadows.counts.items():
            family.add_metric(labels, count)
        yield family


def _path_of_copy(path: str, model: str) -> str | None:
    """Where a copy for `model` goes, None for what is not copied. KServe's paths name models."""
    kserve = _KSERVE.fullmatch(path)
    if kserve is not None:
        return f"/v2/models/{model}{kserve[1]}"
    return path if path in _ANSWERS else None


def _copied(scope: Scope, shadow: Shadow, fields: dict[str, Any]) -> tuple[Scope, bytes]:
    kept = {name: value for name, value in fields.items() if name not in _UNWANTED}
    body = json.dumps({**kept, "model": shadow.copy_to, "stream": False}).encode()
    kept_scope = {name: scope[name] for name in _SCOPE if name in scope}
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    return {**kept_scope, "headers": headers}, body


async def _status(app: _App, scope: Scope, body: bytes) -> int:
    """The status of the app's answer to a request; the answer itself goes nowhere."""
    status, unread = 0, [body]

    async def receive() -> Message:
        if not unread:
            await asyncio.Event().wait()  # a client that stays until it is answered
        return {"type": "http.request", "body": unread.pop(), "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        status = message.get("status", status)

    await app(scope, receive, send)
    return status
