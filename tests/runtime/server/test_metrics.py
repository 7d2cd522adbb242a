"""What /metrics says, read by an independent parser and held to what was answered."""

import time
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from runtime.engine.stats import EngineStats
from runtime.generation import Generation, GenerationParams, TextDelta
from runtime.server.metrics import Metrics, Stopwatch
from runtime.server.metrics_families import saturation_of
from runtime.server.metrics_histogram import Histogram, token_bounds
from runtime.server.metrics_vllm import VllmFamilies
from runtime.server.registry import Registry
from runtime.server.registry_models import Loaded, ModelSettings
from tests.runtime.server.harness import (
    MODEL,
    Running,
    ScriptedExecutor,
    make_service,
    running,
    tiny_tokenizer,
)

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples_of(text: str) -> Samples:
    """Every sample, after the rules of the exposition format have been held up to all of it."""
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        assert family.type in ("gauge", "counter", "histogram") and family.documentation
        for sample in family.samples:
            key = (sample.name, tuple(sorted(sample.labels.items())))
            assert key not in found, f"{key} is there twice"
            found[key] = sample.value
            if family.type == "counter":
                assert sample.name == f"{family.name}_total" and sample.value >= 0
        if family.type == "histogram":
            _check_histogram(family.samples)
    return found


def _check_histogram(samples: Sequence[Any]) -> None:
    """Buckets rise to +Inf, which is the count."""
    series: dict[tuple[tuple[str, str], ...], list[tuple[float, float]]] = {}
    counts: dict[tuple[tuple[str, str], ...], float] = {}
    for sample in samples:
        name, labels, value = sample.name, dict(sample.labels), sample.value
        bound = labels.pop("le", None)
        key = tuple(sorted(labels.items()))
        if name.endswith("_bucket"):
            series.setdefault(key, []).append((float(bound), value))
        elif name.endswith("_count"):
            counts[key] = value
    assert series.keys() == counts.keys()
    for key, buckets in series.items():
        assert buckets == sorted(buckets) and buckets[-1] == (float("inf"), counts[key])
        assert [value for _, value in buckets] == sorted(value for _, value in buckets)


def sample(found: Samples, name: str, **labels: str) -> float:
    return found[name, tuple(sorted({"model_name": MODEL, **labels}.items()))]


@pytest.fixture
def scraped(server: Running) -> Iterator[tuple[Samples, Samples]]:
    """Before and after one answer of three tokens to one of one."""
    before = samples_of(httpx.get(f"{server.url}/metrics", timeout=60).text)
    server.client().completions.create(model=MODEL, prompt=[5], max_tokens=3)
    yield before, samples_of(httpx.get(f"{server.url}/metrics", timeout=60).text)


def test_one_answer_is_counted_once_everywhere(scraped: tuple[Samples, Samples]) -> None:
    def risen(name: str, **labels: str) -> float:
        return sample(scraped[1], name, **labels) - sample(scraped[0], name, **labels)

    assert risen("coldpress_answers_total", finish_reason="length") == 1
    assert risen("coldpress_answers_total", finish_reason="abort") == 0
    assert risen("coldpress_answer_tokens_total") == 3
    assert risen("coldpress_generated_tokens_total") == 3
    assert risen("coldpress_prompt_tokens_total") == 1
    assert risen("coldpress_time_to_first_token_seconds_count") == 1
    assert risen("coldpress_inter_token_latency_seconds_count") == 2
    assert risen("coldpress_time_per_output_token_seconds_count") == 1
    assert risen("coldpress_request_latency_seconds_count") == 1
    assert risen("coldpress_request_decode_seconds_count") == 1
    assert risen("coldpress_request_queue_seconds_count") == 1
    assert 0 < risen("coldpress_request_queue_seconds_sum") < 20, "it waited for its step"
    assert risen("coldpress_request_prefill_seconds_sum") > 0
    assert risen("coldpress_request_prompt_tokens_sum") == 1
    assert risen("coldpress_request_answer_tokens_sum") == 3
    assert sample(scraped[1], "coldpress_pages_in_use") == 0
    assert sample(scraped[1], "coldpress_model_state", state="ready") == 1
    assert sample(scraped[1], "coldpress_model_state", state="failed") == 0
    posts = "coldpress_http_requests_total", (("method", "POST"), ("status", "200"))
    assert scraped[1][posts] - scraped[0].get(posts, 0) == 1
    assert scraped[1]["coldpress_http_requests_active", ()] == 1, "the scrape itself"
    assert sample(scraped[1], "coldpress_pages_total") == 255


def test_vllms_names_have_vllms_types_labels_and_buckets() -> None:
    service, _, thread = make_service(ScriptedExecutor())
    metrics = Metrics(Registry.of([service]), compat=("vllm",))
    generation = service.submit([5, 6], GenerationParams(max_tokens=3))
    watch = Stopwatch(metrics, generation)
    for delta in generation:
        watch.token(delta)
    from prometheus_client import generate_latest

    found = samples_of(generate_latest(metrics.registry).decode())
    thread.shutdown(1)

    def value(name: str, **labels: str) -> float:
        return sample(found, f"vllm:{name}", engine="0", **labels)

    assert value("prompt_tokens_total") == 2 and value("generation_tokens_total") == 3
    assert value("request_success_total", finished_reason="length") == 1
    assert value("num_requests_running") == value("num_requests_waiting") == 0
    assert value("kv_cache_usage_perc") == 0 and value("num_preemptions_total") == 0
    assert value("request_params_max_tokens_sum") == 3
    assert value("time_to_first_token_seconds_bucket", le="2560.0") == 1
    assert value("e2e_request_latency_seconds_bucket", le="7680.0") == 1
    bounds = [
        dict(labels)["le"]
        for name, labels in found
        if name == "vllm:inter_token_latency_seconds_bucket"
    ]
    listed = ".01 .025 .05 .075 .1 .15 .2 .3 .4 .5 .75 1 2.5 5 7.5 10 20 40 80"
    assert bounds == [*(str(float(one)) for one in listed.split()), "+Inf"]
    assert value("request_prompt_tokens_bucket", le="200.0") == 1, "1-2-5 up to the context"
    assert ("vllm:request_prompt_tokens_bucket", "500.0") not in {
        (name, dict(labels).get("le")) for name, labels in found
    }


def test_choices_are_counted_once_for_each_prompt() -> None:
    with running(ScriptedExecutor()) as server:
        body = {"prompt": ["a", "b"], "n": 3, "max_tokens": 4}
        answer = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60)
        assert answer.status_code == 200
        answers = server.server.app.state.server.metrics.by_model()[MODEL]
        assert (answers.choices.count, answers.choices.sum) == (2, 6)
        assert (answers.longest_answer.count, answers.longest_answer.sum) == (2, 8)
    named = {family.name for family in VllmFamilies(_metrics()).collect()}
    assert {"vllm:request_params_n", "vllm:request_max_num_generation_tokens"} <= named


def test_an_answer_that_nobody_waits_for_counts_as_aborted_once() -> None:
    metrics = _metrics()
    watch = Stopwatch(metrics, _generation())
    watch.token(TextDelta("a", 1))
    watch.close()
    watch.close()
    answers = metrics.by_model()["tiny"]
    assert {reason for reason, count in answers.finished.items() if count} == {"abort"}
    assert answers.finished["abort"] == 1
    assert answers.request_latency.count == 1


def test_a_token_costs_little_to_observe() -> None:
    watch = Stopwatch(_metrics(), _generation())
    delta = TextDelta("a", 1)
    best = min(_seconds(watch, delta) for _ in range(5))
    # Two microseconds are the aim; the bound leaves room for a machine that does other work.
    assert best / 2000 < 20e-6


def _seconds(watch: Stopwatch, delta: TextDelta) -> float:
    start = time.process_time()
    for _ in range(2000):
        watch.token(delta)
    return time.process_time() - start


def _metrics() -> Metrics:
    model = ModelSettings(MODEL, load=lambda: Loaded(make_service(ScriptedExecutor())[0]))
    return Metrics(Registry([model]))


def _generation() -> Generation:
    params = GenerationParams(max_tokens=9)
    return Generation("id", 4, params, tiny_tokenizer(), lambda request_id: None, "tiny")


@given(st.lists(st.floats(0, 4000), max_size=40), st.randoms())
def test_buckets_are_the_counts_of_values_at_most_each_bound(
    values: list[float], random: Random
) -> None:
    bounds = tuple(sorted(random.sample(token_bounds(3000), 5)))
    histogram = Histogram(bounds)
    for value in values:
        histogram.observe(value)
    some = bounds[::2]
    for bound, count in histogram.buckets(some):
        assert count == sum(value <= float(bound) for value in values)
    assert [bound for bound, _ in histogram.buckets(some)][:-1] == [str(b) for b in some]
    assert histogram.count == len(values)


def test_token_bounds_end_at_the_context() -> None:
    assert token_bounds(100) == (1, 2, 5, 10, 20, 50, 100)
    assert token_bounds(499) == (1, 2, 5, 10, 20, 50, 100, 200)


def test_saturation_is_the_fullest_resource() -> None:
    assert saturation_of(EngineStats()) == 0
    assert saturation_of(EngineStats(pages_in_use=3, pages_total=4)) == 0.75
    busy = EngineStats(num_running=2, max_running=4, num_waiting=8, max_waiting=8)
    assert saturation_of(busy) == 1
