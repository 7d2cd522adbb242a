"""Tokens that the executor finds in its own logits, where it can: all rows of a step together.

A row's token is the same in company and alone, because both ask the executor.
"""

from collections.abc import Callable, Sequence

import numpy as np

from runtime.engine.batch import DrawsRows, Executor, PlainDraw
from runtime.engine.candidates import Float32, draw_token
from runtime.engine.plan import Chunk
from runtime.engine.request import SamplingParams

DrawRow = Callable[[Float32, SamplingParams, float], int]
"""The token at a random number of the distribution that a row, float32 [n], leaves."""


def row_drawer(executor: Executor) -> DrawRow:
    """How one row is drawn from, edited or not."""
    if not isinstance(executor, DrawsRows):
        return draw_token
    draws: DrawsRows = executor

    def draw(row: Float32, params: SamplingParams, uniform: float) -> int:
        plain = PlainDraw(params.temperature, params.top_k, params.top_p, params.min_p, uniform)
        return draws.draw(row[None], [0], [plain])[0]

    return draw


def draw_together(
    drawer: DrawsRows | None, chunks: Sequence[Chunk], logits: Float32, best: Sequence[int]
) -> dict[int, int]:
    """Tokens by the index of their chunk, of those with one row that is drawn from as it is.
    best: the place of each row's largest number."""
    if drawer is None:
        return {}
    indices, rows, row = [], [], 0
    for index, chunk in enumerate(chunks):
        if chunk.sequence.request.pooling is not None:
            continue
        if _draws_plainly(chunk) and np.isfinite(logits[row, best[row]]):
            indices.append(index)
            rows.append(row)
        row += chunk.num_logits
    if not rows:
        return {}
    draws = [chunks[index].sequence.sampler.take_plain_draw(None) for index in indices]
    return dict(zip(indices, drawer.draw(logits, rows, draws), strict=True))


def _draws_plainly(chunk: Chunk) -> bool:
    sequence = chunk.sequence
    return (
        chunk.is_lone
        and sequence.request.max_tokens > 0
        and sequence.sampler.draws_plainly(sequence.num_answer_tokens)
    )
