"""Families of the grammars that clients send; of the whole process, whatever model they are for."""

from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from runtime.text.grammar.check import checks
from runtime.text.grammar.counts import SECONDS


def grammar_families() -> Iterator[Metric]:
    outcomes = CounterMetricFamily(
        "coldpress_grammars", "Grammars that clients sent, by outcome.", labels=["outcome"]
    )
    for outcome, count in checks.by_outcome.items():
        outcomes.add_metric([outcome], count)
    yield outcomes
    bounds = [*map(str, SECONDS), "+Inf"]
    buckets = [*zip(bounds, accumulate(checks.by_seconds), strict=True)]
    times = HistogramMetricFamily(
        "coldpress_grammar_compile_seconds", "How long a grammar's trial compilation took."
    )
    times.add_metric([], buckets, checks.seconds)
    yield times
