"""Embeddings: the hidden rows of a prompt, gathered chunk by chunk."""

import numpy as np

from runtime.engine.candidates import Float32
from runtime.engine.sequence import SequenceState


def note_hidden(sequence: SequenceState, rows: Float32) -> None:
    """Take in the hidden rows, float32 [positions, hidden_size], that come next. They are added up
    in float64 one after the other, so that the sum is the same however they are cut."""
    total = sequence.pooled
    if total is None or sequence.request.pooling == "last":
        total = np.zeros(rows.shape[1], np.float64)
    for row in rows:
        total += row
    sequence.pooled = total
    sequence.num_pooled_tokens += len(rows)


def embedding_of(sequence: SequenceState) -> bytes:
    """The pooled row, float32 [hidden_size]. Raises FloatingPointError where it is not finite."""
    assert sequence.pooled is not None
    pooled = (sequence.pooled / sequence.num_pooled_tokens).astype(np.float32)
    if not np.isfinite(pooled).all():
        raise FloatingPointError("the model produced hidden numbers that are not finite")
    return pooled.tobytes()
