"""coldpress's own metric families; every figure of a model has the label `model_name`.

docs/SERVER.md lists them. A figure that the engine does not keep has no family, rather than a zero.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, get_args

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from runtime.engine.stats import EngineStats
from runtime.server.metrics_answers import AnswerMetrics
from runtime.server.metrics_grammar import engine_grammar_families, grammar_families
from runtime.server.metrics_histogram import Histogram
from runtime.server.registry_models import ModelState, ServedModel

if TYPE_CHECKING:
    from runtime.server.metrics import Metrics

EngineFigure = Callable[[EngineStats], float]
AnswerFigure = Callable[[AnswerMetrics], Histogram]

GAUGES: tuple[tuple[str, str, EngineFigure], ...] = (
    ("num_running", "Requests in the batch.", lambda s: s.num_running),
    ("num_waiting", "Requests in the queue.", lambda s: s.num_waiting),
    ("max_running", "Requests that share steps at most.", lambda s: s.max_running),
    ("max_waiting", "Requests that may wait.", lambda s: s.max_waiting),
    ("pages_in_use", "KV-cache pages that live requests hold.", lambda s: s.pages_in_use),
    (
        "pages_evictable",
        "KV-cache pages that no request holds, kept for prompts that begin alike.",
        lambda s: s.pages_evictable,
    ),
    (
        "pages_free",
        "KV-cache pages that hold nothing.",
        lambda s: s.pages_total - s.pages_in_use - s.pages_evictable,
    ),
    ("pages_total", "KV-cache pages in the pool.", lambda s: s.pages_total),
    (
        "expected_wait_seconds",
        "How long a request that comes now is likely to wait.",
        lambda s: s.expected_wait_seconds,
    ),
)
COUNTERS: tuple[tuple[str, str, EngineFigure], ...] = (
    ("steps", "Engine steps.", lambda s: s.steps),
    ("failed_steps", "Engine steps that were rolled back.", lambda s: s.failed_steps),
    ("preemptions", "Requests put back to be recomputed.", lambda s: s.preemptions),
    ("prompt_tokens", "Prompt tokens, each prompt counted once.", lambda s: s.prompt_tokens),
    (
        "prefix_cache_queries",
        "Prompt tokens that the prefix cache was asked for.",
        lambda s: s.prefix_cache_queries,
    ),
    (
        "prefix_cache_hits",
        "Prompt tokens that the prefix cache had.",
        lambda s: s.prefix_cache_hits,
    ),
    ("generated_tokens", "Tokens sampled.", lambda s: s.generated_tokens),
    ("computed_tokens", "Tokens that went through the model.", lambda s: s.computed_tokens),
    ("drafts", "Times that the next tokens of an answer were guessed.", lambda s: s.drafts),
    ("draft_tokens", "Tokens that were guessed.", lambda s: s.draft_tokens),
    (
        "accepted_draft_tokens",
        "Guessed tokens that came true.",
        lambda s: s.accepted_draft_tokens,
    ),
    (
        "corrupted_requests",
        "Requests ended because the model gave no finite numbers.",
        lambda s: s.corrupted_requests,
    ),
    (
        "worker_restarts",
        "Processes that took the place of one that had ended.",
        lambda s: s.worker_restarts,
    ),
)
HISTOGRAMS: tuple[tuple[str, str, AnswerFigure], ...] = (
    (
        "time_to_first_token_seconds",
        "From a request's acceptance to its first token.",
        lambda a: a.time_to_first_token,
    ),
    (
        "inter_token_latency_seconds",
        "From one token of an answer to the next.",
        lambda a: a.inter_token_latency,
    ),
    (
        "time_per_output_token_seconds",
        "Mean of an answer's inter-token latencies.",
        lambda a: a.time_per_output_token,
    ),
    (
        "request_latency_seconds",
        "From a request's acceptance to its end.",
        lambda a: a.request_latency,
    ),
    (
        "request_queue_seconds",
        "From the engine's acceptance to the first step.",
        lambda a: a.queue_time,
    ),
    (
        "request_prefill_seconds",
        "From the first step to the first token.",
        lambda a: a.prefill_time,
    ),
    ("request_decode_seconds", "From the first token to the end.", lambda a: a.decode_time),
    ("request_prompt_tokens", "Tokens of a request's prompt.", lambda a: a.prompt_tokens),
    ("request_answer_tokens", "Tokens of an answer.", lambda a: a.answer_tokens),
)


class OwnFamilies(Collector):
    """All of `coldpress_*`."""

    def __init__(self, metrics: "Metrics") -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        yield from _http_families(self._metrics)
        yield from _model_families(self._metrics.models.models)
        yield from grammar_families()
        engines = {one.model_name: one.engine.stats() for one in self._metrics.services}
        yield from engine_families("coldpress_", engines)
        yield from engine_grammar_families(engines)
        saturation = GaugeMetricFamily(
            "coldpress_saturation",
            "The fullest of batch, queue and KV cache, 0 to 1; scale out on it.",
            labels=["model_name"],
        )
        for name, stats in engines.items():
            saturation.add_metric([name], saturation_of(stats))
        yield saturation
        yield from _answer_families(self._metrics.by_model())


def engine_families(prefix: str, engines: Mapping[str, EngineStats]) -> Iterator[Metric]:
    """What each engine keeps, as of the moment of `engines`."""
    for kind, table in ((GaugeMetricFamily, GAUGES), (CounterMetricFamily, COUNTERS)):
        for name, text, figure in table:
            family = kind(prefix + name, text, labels=["model_name"])
            for model_name, stats in engines.items():
                family.add_metric([model_name], figure(stats))
            yield family


def saturation_of(stats: EngineStats) -> float:
    """How full the scarcest of an engine's three resources is, 0 to 1."""
    shares = (
        (stats.pages_in_use, stats.pages_total),
        (stats.num_running, stats.max_running),
        (stats.num_waiting, stats.max_waiting),
    )
    return max(min(1.0, used / total) if total else 0.0 for used, total in shares)


def _answer_families(answers: Mapping[str, AnswerMetrics]) -> Iterator[Metric]:
    ends = CounterMetricFamily(
        "coldpress_answers", "Answers by end.", labels=["model_name", "finish_reason"]
    )
    tokens = CounterMetricFamily(
        "coldpress_answer_tokens", "Tokens of answers that ended.", labels=["model_name"]
    )
    for model_name, one in answers.items():
        for reason, count in one.finished.items():
            ends.add_metric([model_name, reason], count)
        tokens.add_metric([model_name], one.answer_tokens.sum)
    yield from (ends, tokens)
    for name, text, figure in HISTOGRAMS:
        family = HistogramMetricFamily(f"coldpress_{name}", text, labels=["model_name"])
        for model_name, one in answers.items():
            histogram = figure(one)
            family.add_metric([model_name], histogram.buckets(), histogram.sum)
        yield family


def _model_families(models: Mapping[str, ServedModel]) -> Iterator[Metric]:
    states = GaugeMetricFamily(
        "coldpress_model_state",
        "1 for the state that the model is in.",
        labels=["model_name", "state"],
    )
    loads = CounterMetricFamily(
        "coldpress_model_loads", "Times that the model was loaded.", labels=["model_name"]
    )
    seconds = GaugeMetricFamily(
        "coldpress_model_load_seconds", "How long the last load took.", labels=["model_name"]
    )
    for name, model in models.items():
        for state in get_args(ModelState):
            states.add_metric([name, state], float(model.state == state))
        loads.add_metric([name], model.num_loads)
        seconds.add_metric([name], model.load_seconds)
    yield from (states, loads, seconds)


def _http_families(metrics: "Metrics") -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "coldpress_http_requests_active", "HTTP requests being answered.", metrics.http_active
    )
    requests = CounterMetricFamily(
        "coldpress_http_requests", "HTTP requests that ended.", labels=["method", "status"]
    )
    for (method, status), count in metrics.http_requests.items():
        requests.add_metric([method, str(status)], count)
    yield requests
