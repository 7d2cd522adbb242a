"""From scores per token to the figures of an evaluation."""

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from runtime.evaluation.intervals import (
    CONFIDENCE,
    Blocks,
    Estimate,
    Interval,
    cut_blocks,
    estimate,
    mean_interval,
    quantile_interval,
    share_interval,
)
from runtime.evaluation.protocol import Protocol, ProtocolName
from runtime.evaluation.scores import Scores

Float64 = npt.NDArray[np.float64]

HISTOGRAM_LOW, HISTOGRAM_HIGH, HISTOGRAM_STEPS = -7, 2, 4
"""Powers of ten between which divergences are counted, and bins per power: the same for every
evaluation, so that histograms can be laid over each other."""


@dataclass(frozen=True)
class Divergence:
    """KL(baseline || model) per token, in nats."""

    mean: float
    se: float | None
    median: float
    p90: float
    p95: float
    p99: float
    p999: float
    max: float


@dataclass(frozen=True)
class Shift:
    """Probability of the true token under the model, less that under the baseline."""

    mean: float
    se: float | None
    rms: float
    p1: float
    p5: float
    median: float
    p95: float
    p99: float


@dataclass(frozen=True)
class Histogram:
    """counts[0] lie below edges[0], counts[i] in [edges[i - 1], edges[i]), the last above all."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` measured; all from `kld` on are None without a baseline.

    Errors (`se`) are those of means over blocks, see `runtime.evaluation.intervals`; they are None
    with a single block. `perplexity_se`: the perplexity times that of the mean loss.
    ln_ppl_ratio: mean of the paired differences of losses, with their error.
    intervals: 95 % confidence, by the names that gates use; an end that is unknown is infinite.
    """

    perplexity: float
    perplexity_se: float | None
    tokens: int
    window: int
    protocol: ProtocolName
    bos_id: int | None
    blocks: int
    confidence: float
    intervals: dict[str, Interval]
    kld: Divergence | None = None
    kld_histogram: Histogram | None = None
    top1: Estimate | None = None
    delta_p: Shift | None = None
    ppl_ratio: float | None = None
    ln_ppl_ratio: Estimate | None = None
    baseline_perplexity: float | None = None


def summarize(scores: Scores, protocol: Protocol, compared: bool) -> Evaluation:
    """All figures of scores that were made by `protocol`."""
    blocks = cut_blocks(len(scores.loss))
    loss = estimate(scores.loss, blocks)
    perplexity = exp(loss.mean)
    alone = Evaluation(
        perplexity=perplexity,
        perplexity_se=None if loss.se is None else perplexity * loss.se,
        tokens=len(scores.loss),
        window=protocol.window,
        protocol=protocol.name,
        bos_id=protocol.bos_id,
        blocks=blocks.count,
        confidence=CONFIDENCE,
        intervals={"perplexity": _exp_interval(mean_interval(loss, blocks))},
    )
    return _compared(alone, scores, blocks) if compared else alone


def _compared(alone: Evaluation, scores: Scores, blocks: Blocks) -> Evaluation:
    divergence = estimate(scores.divergence, blocks)
    agreement = estimate(scores.agreement, blocks)
    ratio = estimate(scores.loss - scores.baseline_loss, blocks)
    intervals = {
        "ppl_ratio": _exp_interval(mean_interval(ratio, blocks)),
        "kld": mean_interval(divergence, blocks, least=0.0),
        "kld_p99": quantile_interval(scores.divergence, 0.99, blocks),
        "top1": share_interval(agreement, blocks),
    }
    shares = [0.5, 0.9, 0.95, 0.99, 0.999, 1.0]
    quantiles = np.quantile(scores.divergence, shares).tolist()
    return replace(
        alone,
        intervals=alone.intervals | intervals,
        kld=Divergence(divergence.mean, divergence.se, *quantiles),
        kld_histogram=histogram(scores.divergence),
        top1=agreement,
        delta_p=_shift(np.exp(-scores.loss) - np.exp(-scores.baseline_loss), blocks),
        ppl_ratio=exp(ratio.mean),
        ln_ppl_ratio=ratio,
        baseline_perplexity=exp(float(scores.baseline_loss.mean())),
    )


def _shift(difference: Float64, blocks: Blocks) -> Shift:
    mean = estimate(difference, blocks)
    rms = math.sqrt(float(np.square(difference).mean()))
    quantiles = np.quantile(difference, [0.01, 0.05, 0.5, 0.95, 0.99]).tolist()
    return Shift(mean.mean, mean.se, rms, *quantiles)


def histogram(divergence: Float64) -> Histogram:
    """Counts of float64 [tokens] in bins of equal ratio."""
    steps = range(HISTOGRAM_LOW * HISTOGRAM_STEPS, HISTOGRAM_HIGH * HISTOGRAM_STEPS + 1)
    edges = np.array([10.0 ** (step / HISTOGRAM_STEPS) for step in steps])
    bins = np.searchsorted(edges, divergence, side="right")
    counts = np.bincount(bins, minlength=len(edges) + 1)
    return Histogram(tuple(edges.tolist()), tuple(counts.tolist()))


def exp(value: float) -> float:
    """e to the power of `value`; infinite where float64 ends."""
    return math.exp(value) if value < 700 else math.inf


def _exp_interval(interval: Interval) -> Interval:
    return exp(interval[0]), exp(interval[1])
