"""Log-probabilities of given continuations, one sequence after the other, over one page pool."""

from collections.abc import Sequence

import numpy as np

from quant.format.errors import InputError
from runtime.engine.batch import Executor
from runtime.evaluation.protocol import CHUNK_TOKENS, chunk_batch
from runtime.evaluation.scores import ROWS_AT_ONCE, Float32, Int32, log_softmax


class ContinuationScorer:
    """Scores tokens that follow a context. What a sequence begins with in common with the one
    before is not run again, so sorted sequences that share a context cost it once; the figures are
    the same to the bit, because a row's numbers do not depend on the step that it was in.

    longest: tokens that a sequence may run, the last one not counted, which predicts nothing.
    """

    def __init__(self, executor: Executor, longest: int) -> None:
        self._executor = executor
        self.longest = longest
        self._ran: Int32 = np.empty(0, np.int32)

    def score(self, tokens: Sequence[int], scored: int) -> tuple[float, bool]:
        """Sum of the log-probabilities of the last `scored` tokens, in nats, and whether each of
        them is the most probable one. Raises InputError for a sequence that does not fit."""
        inputs = np.asarray(tokens[:-1], np.int32)
        if len(inputs) > self.longest:
            raise InputError(f"{len(tokens)} tokens do not fit a context of {self.longest}")
        if not 1 <= scored <= len(inputs):
            raise InputError(
                f"{scored} of {len(tokens)} tokens cannot be scored: the first one needs another "
                "before it"
            )
        first = len(inputs) - scored
        start = min(first, _common(self._ran, inputs))
        # A step that fails leaves pages of nobody knows what.
        self._ran = self._ran[:start]
        for begin in range(start, first, CHUNK_TOKENS):
            end = min(begin + CHUNK_TOKENS, first)
            self._executor.step(chunk_batch(self._executor, inputs, begin, end, all_logits=False))
        total, greedy = 0.0, True
        for begin in range(first, len(inputs), CHUNK_TOKENS):
            end = min(begin + CHUNK_TOKENS, len(inputs))
            logits = self._executor.step(chunk_batch(self._executor, inputs, begin, end))
            added, best = _rows(logits, np.asarray(tokens[begin + 1 : end + 1], np.int32))
            total, greedy = total + added, greedy and best
        self._ran = inputs
        return total, greedy


def rolling_windows(
    prefix: int, tokens: Sequence[int], longest: int
) -> list[tuple[list[int], list[int]]]:
    """(context, continuation) pairs that predict each token once. The first window has `prefix`
    before it, a later one the last token of the one before; the last is filled with context."""
    pairs = []
    whole = [prefix, *tokens]
    for start in range(0, len(tokens), longest):
        stop = min(start + longest, len(tokens))
        begin = max(0, stop - longest) if start else 0
        pairs.append((whole[begin : start + 1], whole[start + 1 : stop + 1]))
    return pairs


def _rows(logits: Float32, targets: Int32) -> tuple[float, bool]:
    total = 0.0
    for first in range(0, len(targets), ROWS_AT_ONCE):
        rows = slice(first, first + ROWS_AT_ONCE)
        chosen = targets[rows]
        total += float(log_softmax(logits[rows])[np.arange(len(chosen)), chosen].sum())
    return total, bool((logits.argmax(axis=1) == targets).all())


def _common(one: Int32, other: Int32) -> int:
    """Tokens that both begin with."""
    length = min(len(one), len(other))
    differing = np.flatnonzero(one[:length] != other[:length])
    return int(differing[0]) if len(differing) else length
