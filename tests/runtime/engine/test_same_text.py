"""With the cpu executor an answer is the same alone, in a batch of 16, with prefix hits, in chunks,
after preemptions and with guesses, to the last bit of its probabilities."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from compile.model import Model
from quant.format.scheme import IntScheme, PerGroup
from runtime.engine.engine import Engine
from runtime.engine.options import EngineOptions
from runtime.engine.request import FinishReason, Request, SamplingParams, TokenLogprobs
from runtime.engine.stats import EngineStats
from runtime.executors.cpu import CpuExecutor
from tests.tiny import tiny_model

Said = list[tuple[int | None, FinishReason | None, TokenLogprobs | None]]
PAGE = 8
MODELS: dict[str, tuple[Any, dict[str, Any]]] = {
    f"int4, {cache} cache": (
        lambda: tiny_model("llama", scheme=IntScheme(4, True, PerGroup(32))),
        {"activations": "int8", "cache": cache},
    )
    for cache in ("bfloat16", "float16", "int8")
} | {
    "float32": (lambda: tiny_model("llama"), {}),
    "sliding window": (lambda: tiny_model("gemma3_text"), {}),
}


def executor_of(model: Model, num_pages: int, options: dict[str, Any]) -> CpuExecutor:
    return CpuExecutor(model, num_pages=num_pages, page_size=PAGE, threads=2, **options)


def requests() -> list[Request]:
    """Sixteen: greedy, sampled, penalised; half of them with a beginning in common; some that
    repeat themselves, so that there is something to guess."""
    rng = np.random.default_rng(5)
    common = tuple(rng.integers(3, 300, 21).tolist())
    kinds = (
        SamplingParams(temperature=0, logprobs=2),
        SamplingParams(temperature=0.05, seed=3, logprobs=0),
        SamplingParams(temperature=0, repetition_penalty=1.2, logit_bias={7: 2.0}),
        SamplingParams(temperature=0.8, top_p=0.9, seed=4),
    )
    made = []
    for index in range(16):
        own = tuple(rng.integers(3, 300, 3 + index).tolist())
        prompt = common + own if index % 2 else own * 2
        made.append(Request(f"r{index}", prompt, 10 + index, kinds[index % 4]))
    return made


def answers(
    executor: CpuExecutor, asked: list[Request], rounds: int = 1, **extra: Any
) -> tuple[dict[str, Said], EngineStats]:
    draft = extra.pop("draft_executor", None)
    engine = Engine(
        executor, EngineOptions(**extra), clock=lambda: 0.0, draft_executor=draft, check=True
    )
    for _ in range(rounds):
        said: dict[str, Said] = {request.request_id: [] for request in asked}
        for request in asked:
            engine.add(request)
        while engine.has_work:
            for event in engine.step():
                news = (event.token_id, event.finish_reason, event.logprobs)
                said[event.request_id].append(news)
    return said, engine.stats


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest) -> Iterator[tuple[Model, dict[str, Any], CpuExecutor]]:
    make, options = MODELS[request.param]
    model = make()
    executor = executor_of(model, 150, options)
    yield model, options, executor
    executor.close()


Case = tuple[Model, dict[str, Any], CpuExecutor]


@pytest.fixture(scope="module")
def alone(case: Case) -> dict[str, Said]:
    said: dict[str, Said] = {}
    for request in requests():
        said |= answers(case[2], [request], prefix_cache=False)[0]
    return said


def test_in_a_batch_of_sixteen(case: Case, alone: dict[str, Said]) -> None:
    said, stats = answers(case[2], requests(), prefix_cache=False)
    assert said == alone
    assert stats.steps < 60


def test_with_prefix_hits(case: Case, alone: dict[str, Said]) -> None:
    said, stats = answers(case[2], requests(), rounds=2)
    assert said == alone
    assert stats.prefix_cache_hits > 400


@pytest.mark.parametrize("step_tokens", [3, 17])
def test_in_chunks(case: Case, alone: dict[str, Said], step_tokens: int) -> None:
    said, stats = answers(case[2], requests(), max_step_tokens=step_tokens)
    assert said == alone
    assert stats.steps > stats.prompt_tokens / step_tokens


@pytest.mark.parametrize("prefix_cache", [False, True])
def test_after_preemptions(case: Case, alone: dict[str, Said], prefix_cache: bool) -> None:
    model, options, _ = case
    small = executor_of(model, 12, options)
    said, stats = answers(small, requests(), prefix_cache=prefix_cache)
    assert said == alone
    assert stats.preemptions > 2
    small.close()


def test_with_guesses_from_the_text(case: Case, alone: dict[str, Said]) -> None:
    said, stats = answers(case[2], requests(), prompt_lookup=True)
    assert said == alone
    assert stats.draft_tokens > 0


def test_with_guesses_from_another_model(case: Case, alone: dict[str, Said]) -> None:
    model, options, executor = case
    for pages in (150, 12):
        twin = executor_of(model, pages, options)
        said, stats = answers(executor, requests(), draft_executor=twin, max_draft_tokens=3)
        assert said == alone
        assert 0 < stats.accepted_draft_tokens <= stats.draft_tokens
        twin.close()


def test_with_all_of_it_at_once(case: Case, alone: dict[str, Said]) -> None:
    model, options, _ = case
    small = executor_of(model, 12, options)
    asked = [replace(r, priority=i % 3) for i, r in enumerate(requests())]
    said, stats = answers(
        small,
        asked,
        rounds=2,
        max_step_tokens=23,
        prompt_lookup=True,
        queue_order="prefix",
        max_running=9,
    )
    assert said == alone
    assert stats.preemptions and stats.prefix_cache_hits and stats.draft_tokens
    small.close()
