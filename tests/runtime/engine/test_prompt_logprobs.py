"""Probabilities of the prompt's tokens are the same however the prompt is cut up."""

from collections.abc import Sequence
from math import exp, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.engine.batch import StepBatch
from runtime.engine.engine import Engine
from runtime.engine.options import EngineOptions
from runtime.engine.request import Request, RequestError, SamplingParams, TokenEvent
from tests.runtime.engine.fake_executor import (
    FakeExecutor,
    Transcript,
    entry_of,
    greedy_answer,
    logits_of,
)


def scored(
    name: str, prompt: Sequence[int], max_tokens: int = 1, count: int = 2, **sampling: int
) -> Request:
    params = SamplingParams(temperature=0, prompt_logprobs=count, **sampling)  # type: ignore[arg-type]
    return Request(name, tuple(prompt), max_tokens, params)


def first_events(engine: Engine) -> tuple[dict[str, TokenEvent], Transcript]:
    first: dict[str, TokenEvent] = {}
    transcript = Transcript()
    for _ in range(3000):
        events = engine.step()
        transcript.note(events)
        for event in events:
            assert event.request_id not in first or event.prompt_logprobs is None
            first.setdefault(event.request_id, event)
        if not engine.has_work:
            return first, transcript
    raise AssertionError("livelock")


def assert_probabilities(event: TokenEvent, request: Request, vocab_size: int) -> None:
    """Python floats over the whole context, token by token."""
    assert event.prompt_logprobs is not None
    assert len(event.prompt_logprobs) == len(request.prompt_tokens) - 1
    entries: list[int] = []
    for position, token_id in enumerate(request.prompt_tokens[:-1]):
        entries.append(entry_of(entries[-1] if entries else 0, token_id, position))
        row = [float(value) for value in logits_of(entries, vocab_size)]
        total = log(sum(map(exp, row)))
        told = event.prompt_logprobs[position]
        assert told.chosen == pytest.approx(
            row[request.prompt_tokens[position + 1]] - total, abs=1e-5
        )
        best = sorted(range(vocab_size), key=lambda i: -row[i])
        wanted = request.sampling.prompt_logprobs or 0
        assert [token for token, _ in told.top] == best[:wanted]


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 20), min_size=1, max_size=4),
    max_tokens=st.integers(0, 9),
    step_tokens=st.integers(1, 30),
    rows=st.integers(1, 9),
    spare_pages=st.integers(0, 6),
)
def test_over_chunks_and_preemptions(
    lengths: list[int], max_tokens: int, step_tokens: int, rows: int, spare_pages: int
) -> None:
    num_pages = 2 + (max(lengths) + max_tokens) // 4 + spare_pages
    executor = FakeExecutor(num_pages=num_pages)
    options = EngineOptions(max_step_tokens=step_tokens, max_extra_logit_rows=rows)
    engine = Engine(executor, options, check=True)
    requests = [
        scored(str(i), [(i + 5 * j) % 23 for j in range(n)], max_tokens)
        for i, n in enumerate(lengths)
    ]
    plain = Request("plain", (3, 1, 4), 5, SamplingParams(temperature=0))
    for request in requests:
        engine.add(request)
    if num_pages > 2:
        engine.add(plain)
    first, transcript = first_events(engine)
    for request in requests:
        assert_probabilities(first[request.request_id], request, executor.vocab_size)
        text = transcript.tokens.get(request.request_id, [])
        assert text == greedy_answer(request, executor)
        assert transcript.ends[request.request_id].finish_reason == "length"
    if num_pages > 2:
        assert first["plain"].prompt_logprobs is None
        assert transcript.tokens["plain"] == greedy_answer(plain, executor)
    # Besides one row of each sequence, no step asks for more rows than it may.
    widths = [len(b.logit_rows) - len(b.page_table) for b in executor.batches]
    assert max(widths) <= rows


def test_a_prompt_that_fills_the_context_is_scored_without_an_answer() -> None:
    executor = FakeExecutor(max_positions=30, num_pages=9)
    engine = Engine(executor, check=True)
    request = scored("a", range(23), 0)
    request = Request("a", (*request.prompt_tokens, *range(7)), 0, request.sampling)
    engine.add(request)
    first, _ = first_events(engine)
    assert (first["a"].token_id, first["a"].finish_reason) == (None, "length")
    assert_probabilities(first["a"], request, executor.vocab_size)
    with pytest.raises(RequestError, match="at least 1"):
        engine.add(Request("b", (1, 2), 0))


def test_logits_that_are_not_numbers_end_the_request() -> None:
    class Broken(FakeExecutor):
        def step(self, batch: StepBatch) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
            logits = super().step(batch)
            logits[np.isin(batch.positions[batch.logit_rows], [3])] = np.nan
            return logits

    engine = Engine(Broken(), check=True)
    engine.add(scored("a", range(9), 4))
    first, _ = first_events(engine)
    assert first["a"].finish_reason == "error" and first["a"].prompt_logprobs is None
    assert first["a"].error is not None and "not finite" in first["a"].error
