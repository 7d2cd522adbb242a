"""Embeddings among other requests, against the rows added up one by one."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engine.batch import StepBatch
from runtime.engine.engine import Engine
from runtime.engine.options import EngineOptions
from runtime.engine.request import Pooling, Request, RequestError, SamplingParams
from runtime.engine.runner import ExecutorFailed
from tests.runtime.engine.fake_executor import (
    FakeExecutor,
    check_batch,
    entry_of,
    greedy_answer,
    logits_of,
    run_to_end,
)

WIDTH = 5
GREEDY = SamplingParams(temperature=0.0)
KINDS: list[Pooling] = ["mean", "last"]


class EmbeddingExecutor(FakeExecutor):
    """Hidden rows are hashes of the whole context too."""

    def hidden(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        check_batch(batch, self)
        self.batches.append(batch)
        self._write(batch)
        self.before_step(batch)
        rows = [self._hidden_row(batch, int(row)) for row in batch.logit_rows]
        return np.array(rows, np.float32).reshape(len(rows), WIDTH)

    def _hidden_row(self, batch: StepBatch, row: int) -> npt.NDArray[np.float32]:
        index = int(np.searchsorted(batch.query_starts, row, side="right")) - 1
        pages = batch.page_table[index]
        entries = [self._read(pages, p) for p in range(int(batch.positions[row]) + 1)]
        return logits_of(entries, WIDTH)


def embedding(tokens: Sequence[int], pooling: Pooling) -> bytes:
    """The oracle: every row from the tokens alone."""
    entries: list[int] = []
    rows = []
    for position, token in enumerate(tokens):
        entries.append(entry_of(entries[-1] if entries else 0, token, position))
        rows.append(logits_of(entries, WIDTH))
    if pooling == "last":
        return rows[-1].tobytes()
    total = np.zeros(WIDTH, np.float64)
    for row in rows:
        total += row
    return (total / len(rows)).astype(np.float32).tobytes()


def embed(name: str, tokens: Sequence[int], pooling: Pooling) -> Request:
    return Request(name, tuple(tokens), 0, GREEDY, pooling=pooling)


@given(
    prompts=st.lists(
        st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=30), st.sampled_from(KINDS)),
        min_size=1,
        max_size=5,
    ),
    answers=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=12), max_size=3),
    step_tokens=st.integers(1, 20),
    num_pages=st.integers(12, 40),
    prefix_cache=st.booleans(),
)
def test_an_embedding_is_that_of_its_tokens_whatever_shares_its_steps(
    prompts: list[tuple[list[int], Pooling]],
    answers: list[list[int]],
    step_tokens: int,
    num_pages: int,
    prefix_cache: bool,
) -> None:
    executor = EmbeddingExecutor(num_pages=num_pages)
    options = EngineOptions(max_step_tokens=step_tokens, prefix_cache=prefix_cache)
    engine = Engine(executor, options, check=True)
    asked = [Request(f"a{i}", tuple(tokens), 6, GREEDY) for i, tokens in enumerate(answers)]
    wanted = [embed(f"e{i}", tokens, kind) for i, (tokens, kind) in enumerate(prompts)]
    for request in [*asked, *wanted]:
        engine.add(request)
    transcript = run_to_end(engine)
    for request in wanted:
        end = transcript.ends[request.request_id]
        assert end.finish_reason == "stop" and request.pooling is not None
        assert end.embedding == embedding(request.prompt_tokens, request.pooling)
    for request in asked:
        assert transcript.tokens[request.request_id] == greedy_answer(request, executor)
    assert engine.pages_in_use == 0


def test_a_failed_step_is_tried_again_with_nothing_added_twice() -> None:
    executor = EmbeddingExecutor()
    engine = Engine(executor, EngineOptions(max_step_tokens=4), check=True)
    tokens = [1, 2, 3, 4, 5, 6, 7, 8, 9]
    engine.add(embed("e", tokens, "mean"))
    calls = 0

    def fail_at_times(batch: StepBatch) -> None:
        nonlocal calls
        calls += 1
        if calls % 2:
            raise RuntimeError("jammed")

    executor.before_step = fail_at_times
    events = []
    while engine.has_work:
        try:
            events += engine.step()
        except ExecutorFailed:
            continue
    assert [event.embedding for event in events] == [embedding(tokens, "mean")]


def test_numbers_that_are_not_finite_are_an_error() -> None:
    class Broken(EmbeddingExecutor):
        def hidden(self, batch: StepBatch) -> npt.NDArray[np.float32]:
            return np.full((len(batch.logit_rows), WIDTH), np.nan, np.float32)

    engine = Engine(Broken(), check=True)
    engine.add(embed("e", [1, 2], "mean"))
    (event,) = engine.step()
    assert event.finish_reason == "error" and event.error is not None and event.embedding is None


def test_what_cannot_be_embedded_is_refused() -> None:
    with pytest.raises(RequestError, match="backend gives no embeddings"):
        Engine(FakeExecutor()).add(embed("e", [1], "mean"))
    engine = Engine(EmbeddingExecutor())
    with pytest.raises(RequestError, match="without an answer"):
        engine.add(Request("e", (1,), 3, GREEDY, pooling="last"))
    with pytest.raises(RequestError, match="context is 200 tokens"):
        engine.add(embed("e", [1] * 201, "last"))
    engine.add(embed("e", [1] * 200, "last"))
