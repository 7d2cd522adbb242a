"""Continuations: each token of a text once, the same whatever was run before."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.format.errors import InputError
from runtime.engine.batch import StepBatch
from runtime.evaluation.continuations import ContinuationScorer, rolling_windows
from runtime.evaluation.scores import log_softmax
from tests.runtime.test_evaluate import VOCAB, TableExecutor

TOKENS = st.lists(st.integers(0, VOCAB - 1), min_size=2, max_size=300)


class Reusing(TableExecutor):
    """Checks that a step begins at or before the end of what the pages hold."""

    def step(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        assert int(batch.positions[0]) <= self.written
        self.written = int(batch.positions[0])
        return super().step(batch)


@given(st.lists(st.tuples(TOKENS, st.integers(1, 299)), min_size=1, max_size=4))
def test_scores_are_sums_whatever_was_run_before(asked: list[tuple[list[int], int]]) -> None:
    executor = Reusing(1)
    scorer = ContinuationScorer(executor, 4000)
    for tokens, wanted in asked:
        scored = min(wanted, len(tokens) - 1)
        found, greedy = scorer.score(tokens, scored)
        rows = np.stack([executor.row(token, at) for at, token in enumerate(tokens[:-1])])[-scored:]
        targets = np.array(tokens[-scored:])
        expected = log_softmax(rows)[np.arange(scored), targets].sum()
        assert found == pytest.approx(expected, rel=1e-9)
        assert greedy == bool((rows.argmax(axis=1) == targets).all())


def test_a_shared_context_is_run_once() -> None:
    executor = Reusing(1)
    scorer = ContinuationScorer(executor, 4000)
    context = [1] * 200
    for answer in ([2, 3], [2, 4, 5], [6]):
        scorer.score(context + answer, len(answer))
    # 200 + 1, then from the context's last token on: 3 and 1 positions.
    assert sum(executor.steps) == 201 + 3 + 1


@pytest.mark.parametrize(
    ("tokens", "scored"), [([1, 2, 3], 3), ([1], 1), ([1, 2], 0), ([1] * 9, 2)]
)
def test_what_cannot_be_scored_is_refused(tokens: list[int], scored: int) -> None:
    with pytest.raises(InputError):
        ContinuationScorer(TableExecutor(1), 7).score(tokens, scored)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(1, 12))
def test_rolling_windows_predict_each_token_once(tokens: list[int], longest: int) -> None:
    windows = rolling_windows(99, tokens, longest)
    assert [token for _, answer in windows for token in answer] == tokens
    whole, done = [99, *tokens], 0
    for context, answer in windows:
        done += len(answer)
        assert len(context) >= 1 and len(context) + len(answer) <= longest + 1
        assert whole[: done + 1][-len(context) - len(answer) :] == [*context, *answer]
        assert done == len(tokens) or len(context) + len(answer) == longest + 1
