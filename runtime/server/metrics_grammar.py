"""Families of the grammars that clients send; of the whole process, whatever model they are for."""

from collections.abc import Iterator, Mapping
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from runtime.engine.constraint import GRAMMAR_SECONDS
from runtime.engine.stats import EngineStats
from runtime.text.grammar.check import checks


def grammar_families() -> Iterator[Metric]:
    outcomes = CounterMetricFamily(
        "coldpress_grammars", "Grammars that clients sent, by outcome.", labels=["outcome"]
    )
    for outcome, count in checks.by_outcome.items():
        outcomes.add_metric([outcome], count)
    yield outcomes
    bounds = [*map(str, GRAMMAR_SECONDS), "+Inf"]
    buckets = [*zip(bounds, accumulate(checks.by_seconds), strict=True)]
    times = HistogramMetricFamily(
        "coldpress_grammar_compile_seconds", "How long a grammar's trial compilation took."
    )
    times.add_metric([], buckets, checks.seconds)
    yield times


def engine_grammar_families(engines: Mapping[str, EngineStats]) -> Iterator[Metric]:
    """Of what passed the trial, how it fared in each model's engine."""
    outcomes = CounterMetricFamily(
        "coldpress_engine_grammars",
        "Grammars that came to the engine, by what became of them.",
        labels=["model_name", "outcome"],
    )
    times = HistogramMetricFamily(
        "coldpress_engine_grammar_compile_seconds",
        "How long the engine took to compile a grammar.",
        labels=["model_name"],
    )
    for name, stats in engines.items():
        compiled = stats.grammar_misses - stats.grammar_refusals
        outcomes.add_metric([name, "hit"], stats.grammar_hits)
        outcomes.add_metric([name, "compiled"], compiled)
        outcomes.add_metric([name, "refused"], stats.grammar_refusals)
        outcomes.add_metric([name, "failed"], stats.grammar_failures)
        bounds = [*map(str, GRAMMAR_SECONDS), "+Inf"]
        counts = accumulate(stats.grammar_times.values())
        times.add_metric([name], [*zip(bounds, counts, strict=True)], stats.grammar_seconds)
    yield from (outcomes, times)
