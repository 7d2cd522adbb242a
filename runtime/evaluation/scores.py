"""Per token: both losses, the divergence and the agreement, from rows of logits."""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int32 = npt.NDArray[np.int32]

ROWS_AT_ONCE = 8
"""Rows of logits in float64 at a time: small enough to stay in a core's cache."""


@dataclass(frozen=True, eq=False)
class Reference:
    """What the baseline says about some rows.

    probabilities, log_probabilities: float64 [rows, vocab]. loss: float64 [rows], of the true
    token. top: int64 [rows], the most probable token.
    """

    probabilities: Float64
    log_probabilities: Float64
    loss: Float64
    top: npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Scores:
    """float64 [tokens] each; nats. Without a baseline all but the loss are zero."""

    loss: Float64
    baseline_loss: Float64
    divergence: Float64
    agreement: Float64


def score_alone(logits: Float32, targets: Int32) -> Scores:
    """Losses of `targets` [rows] under `logits` [rows, vocab]."""
    nothing = np.zeros(len(targets))
    log_p = log_softmax(logits)
    return Scores(-log_p[np.arange(len(targets)), targets], nothing, nothing, nothing)


def score_against(reference: Reference, logits: Float32, targets: Int32) -> Scores:
    """KL(baseline || model) of each row, and whether both find the same token most probable."""
    log_p = log_softmax(logits)
    log_q = reference.log_probabilities
    # A token that the baseline gives no chance at all adds nothing, whatever the model gives it.
    gap = np.subtract(log_q, log_p, out=np.zeros_like(log_q), where=log_q > -np.inf)
    return Scores(
        loss=-log_p[np.arange(len(targets)), targets],
        baseline_loss=reference.loss,
        divergence=np.einsum("rv,rv->r", reference.probabilities, gap),
        agreement=(logits.argmax(axis=1) == reference.top).astype(np.float64),
    )


def reference_of(logits: Float32, targets: Int32) -> Reference:
    """The baseline's rows from its logits."""
    log_q = log_softmax(logits)
    loss = -log_q[np.arange(len(targets)), targets]
    return Reference(np.exp(log_q), log_q, loss, logits.argmax(axis=1))


def log_softmax(logits: Float32) -> Float64:
    """float64 [rows, vocab]: natural logarithms of the probabilities."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted


def join(parts: Sequence[Scores]) -> Scores:
    """One after the other."""
    columns = [[getattr(part, field.name) for part in parts] for field in fields(Scores)]
    return Scores(*(np.concatenate(column) for column in columns))
