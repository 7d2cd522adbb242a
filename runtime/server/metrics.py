"""Prometheus metrics, each registry its own, so that several apps can live in one process."""

import time
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from runtime.generation import Generation, TextDelta

if TYPE_CHECKING:
    from runtime.service import GenerationService

_TTFT_BUCKETS = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 10, 20, 40)
_ITL_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 5)
_E2E_BUCKETS = (0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 60, 120, 240, 480)


def add_routes(app: FastAPI) -> None:
    app.add_api_route("/metrics", show_metrics, methods=["GET"])


class Metrics:
    """What the server itself observes; the engine's own figures are read when asked for."""

    def __init__(self, services: Iterable["GenerationService"]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(tuple(services)))
        self.time_to_first_token = self._histogram("time_to_first_token", _TTFT_BUCKETS)
        self.inter_token_latency = self._histogram("inter_token_latency", _ITL_BUCKETS)
        self.request_latency = self._histogram("request_latency", _E2E_BUCKETS)
        self.answers = Counter(
            "coldpress_answers", "Answers by end.", ("finish_reason",), registry=self.registry
        )
        self.answer_tokens = Counter(
            "coldpress_answer_tokens", "Tokens given out.", registry=self.registry
        )

    def _histogram(self, name: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(
            f"coldpress_{name}_seconds",
            name.replace("_", " ").capitalize() + ".",
            buckets=buckets,
            registry=self.registry,
        )


class Stopwatch:
    """Times one answer, from its submission on."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._start = self._last = time.monotonic()
        self._seen_first = False

    def token(self, generation: Generation, delta: TextDelta) -> None:
        now = time.monotonic()
        if self._seen_first:
            self._metrics.inter_token_latency.observe(now - self._last)
        else:
            self._metrics.time_to_first_token.observe(now - self._start)
        self._seen_first, self._last = True, now
        if delta.finish_reason is not None:
            self._metrics.request_latency.observe(now - self._start)
            self._metrics.answers.labels(delta.finish_reason).inc()
            self._metrics.answer_tokens.inc(generation.num_answer_tokens)


class _EngineCollector(Collector):
    def __init__(self, services: tuple["GenerationService", ...]) -> None:
        self._services = services

    def collect(self) -> Iterator[Metric]:
        for kind, name, text in (
            (GaugeMetricFamily, "num_running", "Requests in the batch."),
            (GaugeMetricFamily, "num_waiting", "Requests in the queue."),
            (GaugeMetricFamily, "pages_in_use", "KV-cache pages owned by requests."),
            (GaugeMetricFamily, "pages_total", "KV-cache pages in the pool."),
            (CounterMetricFamily, "steps", "Engine steps."),
            (CounterMetricFamily, "failed_steps", "Engine steps that were rolled back."),
            (CounterMetricFamily, "preemptions", "Requests put back to be recomputed."),
            (CounterMetricFamily, "prompt_tokens", "Prompt tokens, each prompt counted once."),
            (CounterMetricFamily, "generated_tokens", "Tokens sampled."),
        ):
            family = kind(f"coldpress_{name}", text, labels=["model_name"])
            for service in self._services:
                value = getattr(service.engine.stats(), name)
                family.add_metric([service.model_name], value)
            yield family


async def show_metrics(request: Request) -> Response:
    """GET /metrics, in the Prometheus text format."""
    text = generate_latest(request.app.state.server.metrics.registry)
    return Response(text, media_type=CONTENT_TYPE_LATEST)
