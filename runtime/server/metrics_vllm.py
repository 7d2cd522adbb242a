"""vLLM's names for the same figures, so that dashboards, autoscalers and load generators that ask
for them work unmodified: types, labels and buckets of vllm/v1/metrics/loggers.py (0.33).

Only figures that exist here are given. Of vLLM's names those for sleep, LoRA, images and external
caches are left out, since there is nothing to tell.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from runtime.engine.stats import EngineStats
from runtime.server.metrics_answers import AnswerMetrics
from runtime.server.metrics_families import AnswerFigure
from runtime.server.metrics_histogram import (
    CHOICE_BOUNDS,
    ITL_BOUNDS,
    REQUEST_BOUNDS,
    TTFT_BOUNDS,
    token_bounds,
)

if TYPE_CHECKING:
    from runtime.server.metrics import Metrics

_LABELS = ["model_name", "engine"]
_ENGINE = "0"
_TIMES: tuple[tuple[str, str, Sequence[float], AnswerFigure], ...] = (
    (
        "time_to_first_token_seconds",
        "Histogram of time to first token in seconds.",
        TTFT_BOUNDS,
        lambda a: a.time_to_first_token,
    ),
    (
        "inter_token_latency_seconds",
        "Histogram of inter-token latency in seconds.",
        ITL_BOUNDS,
        lambda a: a.inter_token_latency,
    ),
    (
        "time_per_output_token_seconds",
        "Histogram of inter-token latency in seconds, under its older name.",
        ITL_BOUNDS,
        lambda a: a.inter_token_latency,
    ),
    (
        "request_time_per_output_token_seconds",
        "Histogram of a request's mean time per output token in seconds.",
        ITL_BOUNDS,
        lambda a: a.time_per_output_token,
    ),
    (
        "e2e_request_latency_seconds",
        "Histogram of end to end request latency in seconds.",
        REQUEST_BOUNDS,
        lambda a: a.request_latency,
    ),
    (
        "request_queue_time_seconds",
        "Histogram of time spent in WAITING phase for request.",
        REQUEST_BOUNDS,
        lambda a: a.queue_time,
    ),
    (
        "request_inference_time_seconds",
        "Histogram of time spent in RUNNING phase for request.",
        REQUEST_BOUNDS,
        lambda a: a.inference_time,
    ),
    (
        "request_prefill_time_seconds",
        "Histogram of time spent in PREFILL phase for request.",
        REQUEST_BOUNDS,
        lambda a: a.prefill_time,
    ),
    (
        "request_decode_time_seconds",
        "Histogram of time spent in DECODE phase for request.",
        REQUEST_BOUNDS,
        lambda a: a.decode_time,
    ),
)
_SIZES: tuple[tuple[str, str, AnswerFigure], ...] = (
    ("request_prompt_tokens", "Number of prefill tokens processed.", lambda a: a.prompt_tokens),
    (
        "request_generation_tokens",
        "Number of generation tokens processed.",
        lambda a: a.answer_tokens,
    ),
    (
        "request_prefill_kv_computed_tokens",
        "Histogram of prompt tokens that the prefix cache did not have.",
        lambda a: a.computed_prompt_tokens,
    ),
    (
        "request_params_max_tokens",
        "Histogram of the max_tokens request parameter.",
        lambda a: a.max_tokens,
    ),
    (
        "request_max_num_generation_tokens",
        "Histogram of maximum number of requested generation tokens.",
        lambda a: a.longest_answer,
    ),
)


def _usage(stats: EngineStats) -> float:
    return stats.pages_in_use / stats.pages_total if stats.pages_total else 0.0


_GAUGES: tuple[tuple[str, str, Callable[[EngineStats], float]], ...] = (
    (
        "num_requests_running",
        "Number of requests in model execution batches.",
        lambda s: s.num_running,
    ),
    (
        "num_requests_waiting",
        "Number of requests waiting to be processed.",
        lambda s: s.num_waiting,
    ),
    ("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", _usage),
    ("gpu_cache_usage_perc", "kv_cache_usage_perc under its older name.", _usage),
)
_COUNTERS: tuple[tuple[str, str, Callable[[EngineStats], float]], ...] = (
    ("prompt_tokens", "Number of prefill tokens processed.", lambda s: s.prompt_tokens),
    ("generation_tokens", "Number of generation tokens processed.", lambda s: s.generated_tokens),
    (
        "prefix_cache_queries",
        "Prefix cache queries, in terms of number of queried tokens.",
        lambda s: s.prefix_cache_queries,
    ),
    (
        "prefix_cache_hits",
        "Prefix cache hits, in terms of number of cached tokens.",
        lambda s: s.prefix_cache_hits,
    ),
    (
        "prompt_tokens_cached",
        "Number of prompt tokens found in the prefix cache.",
        lambda s: s.prefix_cache_hits,
    ),
    ("num_preemptions", "Cumulative number of preemptions.", lambda s: s.preemptions),
    (
        "corrupted_requests",
        "Number of requests with NaNs in logits.",
        lambda s: s.corrupted_requests,
    ),
    ("spec_decode_num_drafts", "Number of spec decoding drafts.", lambda s: s.drafts),
    ("spec_decode_num_draft_tokens", "Number of draft tokens.", lambda s: s.draft_tokens),
    (
        "spec_decode_num_accepted_tokens",
        "Number of accepted tokens.",
        lambda s: s.accepted_draft_tokens,
    ),
)


class VllmFamilies(Collector):
    """All of `vllm:*`."""

    def __init__(self, metrics: "Metrics") -> None:
        self._metrics = metrics

    def collect(self) -> Iterator[Metric]:
        services = self._metrics.services
        engines = {one.model_name: one.engine.stats() for one in services}
        for kind, table in ((GaugeMetricFamily, _GAUGES), (CounterMetricFamily, _COUNTERS)):
            for name, text, figure in table:
                family = kind(f"vllm:{name}", text, labels=_LABELS)
                for model_name, stats in engines.items():
                    family.add_metric([model_name, _ENGINE], figure(stats))
                yield family
        lengths = {one.model_name: one.max_positions for one in services}
        # A model that is unloaded has no context, and its past answers stay under our own names.
        answers = {name: one for name, one in self._metrics.by_model().items() if name in lengths}
        yield _waiting(engines)
        yield _ends(answers)
        for name, text, bounds, times in _TIMES:
            yield _histogram(name, text, answers, times, dict.fromkeys(lengths, bounds))
        sizes = {name: token_bounds(length) for name, length in lengths.items()}
        choices = dict.fromkeys(lengths, CHOICE_BOUNDS)
        text = "Histogram of the n request parameter."
        yield _histogram("request_params_n", text, answers, lambda a: a.choices, choices)
        for name, text, counts in _SIZES:
            yield _histogram(name, text, answers, counts, sizes)


def _waiting(engines: dict[str, EngineStats]) -> Metric:
    """Requests that wait for the engine's grammars or for anything else are not told apart: all
    wait for a place."""
    family = GaugeMetricFamily(
        "vllm:num_requests_waiting_by_reason",
        "Number of requests waiting, by reason.",
        labels=[*_LABELS, "reason"],
    )
    for model_name, stats in engines.items():
        family.add_metric([model_name, _ENGINE, "capacity"], stats.num_waiting)
        family.add_metric([model_name, _ENGINE, "deferred"], 0)
    return family


def _ends(answers: dict[str, AnswerMetrics]) -> Metric:
    family = CounterMetricFamily(
        "vllm:request_success",
        "Count of successfully processed requests.",
        labels=[*_LABELS, "finished_reason"],
    )
    for model_name, one in answers.items():
        # An end that vLLM does not know is given under the one that it would have there.
        ends: dict[str, int] = dict.fromkeys(("stop", "length", "abort", "error", "repetition"), 0)
        for reason, count in one.finished.items():
            ends[reason if reason in ends else "abort"] += count
        for name, count in ends.items():
            family.add_metric([model_name, _ENGINE, name], count)
    return family


def _histogram(
    name: str,
    text: str,
    answers: dict[str, AnswerMetrics],
    figure: AnswerFigure,
    bounds: Mapping[str, Sequence[float]],
) -> Metric:
    family = HistogramMetricFamily(f"vllm:{name}", text, labels=_LABELS)
    for model_name, one in answers.items():
        histogram = figure(one)
        buckets = histogram.buckets(bounds[model_name])
        family.add_metric([model_name, _ENGINE], buckets, histogram.sum)
    return family
