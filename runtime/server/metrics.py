"""What the server observes of its answers, and GET /metrics in Prometheus' text format.

Everything here runs on the event loop's thread, so that nothing needs a lock.
"""

import time
from collections.abc import Collection

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.requests import Request
from starlette.responses import Response

from runtime.engine.request import FinishReason
from runtime.generation import Generation, TextDelta
from runtime.server.metrics_answers import AnswerMetrics
from runtime.server.metrics_families import OwnFamilies
from runtime.server.metrics_vllm import VllmFamilies
from runtime.server.registry import Registry
from runtime.server.routing import App
from runtime.service import GenerationService


def add_routes(app: App) -> None:
    app.add_api_route("/metrics", show_metrics, methods=["GET"])


class Metrics:
    """All figures of one app; `registry` is its own, so that several apps can live in one
    process. `compat`: other servers' names to give them under as well; "vllm" is known."""

    def __init__(self, models: Registry, compat: Collection[str] = ()) -> None:
        self.models = models
        self._answers: dict[str, AnswerMetrics] = {}
        self.http_active = 0
        self.http_requests: dict[tuple[str, int], int] = {}
        """By method and status."""
        self.registry = CollectorRegistry()
        self.registry.register(OwnFamilies(self))
        if "vllm" in compat:
            self.registry.register(VllmFamilies(self))

    @property
    def services(self) -> list[GenerationService]:
        """Of the models that answer at this moment."""
        return list(self.models.ready_services().values())

    def of(self, model_name: str) -> AnswerMetrics:
        known = self._answers.get(model_name)
        if known is None:
            known = self._answers[model_name] = AnswerMetrics()
        return known

    def by_model(self) -> dict[str, AnswerMetrics]:
        """Of every model that answers or has answered."""
        for name in self.models.models:
            self.of(name)
        return dict(self._answers)


class Stopwatch:
    """Times one answer. Call `token` for each delta, and `close` once nobody listens any more."""

    __slots__ = ("_answers", "_generation", "_last", "_open")

    def __init__(self, metrics: Metrics, generation: Generation) -> None:
        self._answers = metrics.of(generation.model_name)
        self._generation = generation
        self._last = generation.started
        self._open = True

    def token(self, delta: TextDelta) -> None:
        now = time.monotonic()
        if self._generation.first_token is not None:
            self._answers.inter_token_latency.observe(now - self._last)
        else:
            self._generation.first_token = now
            self._answers.time_to_first_token.observe(now - self._last)
        self._last = now
        if delta.finish_reason is not None:
            self._end(delta.finish_reason, now)

    def close(self) -> None:
        """Counts an answer whose end did not come as aborted; harmless after the end."""
        if self._open:
            self._end("abort", time.monotonic())

    def _end(self, reason: FinishReason, now: float) -> None:
        answers, generation = self._answers, self._generation
        self._open = False
        answers.finished[reason] += 1
        answers.request_latency.observe(now - generation.started)
        answers.prompt_tokens.observe(generation.num_prompt_tokens)
        computed = generation.num_prompt_tokens - generation.num_cached_tokens
        answers.computed_prompt_tokens.observe(computed)
        answers.answer_tokens.observe(generation.num_answer_tokens)
        answers.max_tokens.observe(generation.max_tokens)
        if generation.first_token is not None:
            decoding = now - generation.first_token
            waited = generation.queue_seconds
            answers.queue_time.observe(waited)
            answers.prefill_time.observe(generation.first_token - generation.started - waited)
            answers.inference_time.observe(now - generation.started - waited)
            answers.decode_time.observe(decoding)
            if generation.num_answer_tokens > 1:
                per_token = decoding / (generation.num_answer_tokens - 1)
                answers.time_per_output_token.observe(per_token)


async def show_metrics(request: Request) -> Response:
    """GET /metrics."""
    text = generate_latest(request.app.state.server.metrics.registry)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
