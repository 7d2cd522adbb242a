"""How far predictions are from a baseline's. NumPy alone: it runs in every tool's environment."""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]

ROWS_AT_ONCE = 4
"""Rows of float64 logits at a time: small enough to stay near the core, twice as fast as 64."""
LOSS, KLD, TOP1 = range(3)


@dataclass(frozen=True)
class Estimate:
    """A mean and its standard error."""

    mean: float
    se: float


@dataclass(frozen=True)
class Summary:
    """perplexity: exp of the mean loss. kld: KL(base || model) in nats.

    top1: share of positions with the same favourite. positions: how many were scored.
    """

    perplexity: float
    kld: Estimate
    top1: float
    positions: int


@dataclass(frozen=True)
class Baseline:
    """The float model's last hidden states, from which its predictions are made again.

    They take a hundredth of the room of the predictions. hidden: float32 [windows, positions,
    hidden], after the last norm. head: float32 [vocab, hidden].
    """

    hidden: Float32
    head: Float32

    def logits(self, window: int) -> Float32:
        """Float32 [positions, vocab]."""
        logits: Float32 = self.hidden[window] @ self.head.T
        return logits


def load_baseline(directory: Path) -> Baseline:
    """The arrays that `steps.baseline` wrote; the hidden states are read as they are needed."""
    hidden = np.load(directory / "hidden.npy", mmap_mode="r")
    return Baseline(hidden, np.load(directory / "head.npy"))


def log_softmax(logits: Float32 | Float64) -> Float64:
    """Over the last axis, in float64."""
    wide: Float64 = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    wide -= np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return wide


def score_window(logits: Float32, base: Float32, targets: Int64) -> Float64:
    """Float64 [3, positions]: loss in nats, KL(base || model) in nats, same favourite (0 or 1).

    logits, base: [positions, vocab]; targets: [positions], the tokens that came.
    """
    scored = np.empty((3, len(targets)))
    for start in range(0, len(targets), ROWS_AT_ONCE):
        rows = slice(start, start + ROWS_AT_ONCE)
        ours, theirs = log_softmax(logits[rows]), log_softmax(base[rows])
        scored[LOSS, rows] = -np.take_along_axis(ours, targets[rows, None], axis=1)[:, 0]
        scored[KLD, rows] = (np.exp(theirs) * (theirs - ours)).sum(axis=1)
        scored[TOP1, rows] = ours.argmax(axis=1) == theirs.argmax(axis=1)
    return scored


def summarize(scores: Float64) -> Summary:
    """scores: float64 [windows, 3, positions], as `score_window` gives them."""
    loss, kld, top1 = (scores[:, kind] for kind in (LOSS, KLD, TOP1))
    return Summary(
        perplexity=math.exp(loss.mean()),
        kld=Estimate(float(kld.mean()), standard_error(kld)),
        top1=float(top1.mean()),
        positions=kld.size,
    )


def standard_error(values: Float64) -> float:
    """Of the mean of [windows, positions]; from the windows' means, since neighbours are alike.

    One window alone has only its positions to go by, which makes the error look too small.
    """
    independent = values.mean(axis=1) if len(values) > 1 else values[0]
    return float(independent.std(ddof=1) / math.sqrt(len(independent)))


def ratio(ours: Float64, theirs: Float64) -> Estimate:
    """Mean of `ours` over mean of `theirs`, both [windows, positions] of the same text.

    The error is the delta method's, on the differences window by window: what makes a window hard
    for both cancels.
    """
    value = float(ours.mean() / theirs.mean())
    return Estimate(value, standard_error(ours - value * theirs) / float(theirs.mean()))
