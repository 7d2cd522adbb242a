"""One step on an executor: arrays in, rows out, and a look at their shapes."""

from collections.abc import Sequence

import numpy as np

from runtime.engine.batch import Executor, FindsBest, GivesHidden
from runtime.engine.candidates import Float32
from runtime.engine.plan import Chunk, build_batch


def run_chunks(executor: Executor, chunks: Sequence[Chunk]) -> tuple[Float32, Float32]:
    """Rows of hidden numbers for the embeddings among the chunks, of logits for the others.

    Raises ValueError for rows of a wrong shape, and whatever the executor raises.
    """
    size = executor.page_size
    pooled = [chunk for chunk in chunks if chunk.sequence.request.pooling is not None]
    others = chunks
    if pooled:
        others = [chunk for chunk in chunks if chunk.sequence.request.pooling is None]
    hidden = logits = np.empty((0, executor.vocab_size), np.float32)
    if pooled and isinstance(executor, GivesHidden):
        # The next call of the executor overwrites them.
        hidden = executor.hidden(build_batch(pooled, size)).copy()
    if others:
        logits = executor.step(build_batch(others, size))
    expected = (sum(chunk.num_logits for chunk in others), executor.vocab_size)
    if logits.shape != expected:
        raise ValueError(f"the executor returned logits {logits.shape} instead of {expected}")
    if len(hidden) != sum(chunk.num_logits for chunk in pooled):
        raise ValueError(f"the executor returned {len(hidden)} rows of hidden numbers")
    return hidden, logits


def best_of(executor: Executor, logits: Float32) -> list[int]:
    """Of each row of logits that the executor gave last, the index of the largest, the first of
    equal ones; of the first NaN where there is one."""
    if not len(logits):
        return []
    found = executor.best() if isinstance(executor, FindsBest) else logits.argmax(axis=1)
    best: list[int] = found.tolist()
    return best
