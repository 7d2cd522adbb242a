"""Pure functions over one row of logits, float32 [vocab]: which tokens stay, and one draw."""

import numpy as np
import numpy.typing as npt

from runtime.engine.request import SamplingParams, TokenLogprobs

Float32 = npt.NDArray[np.float32]
Ids = npt.NDArray[np.intp]

_SMALLEST_TEMPERATURE = 1e-30
"""Below it float32 division by the temperature is not defined; every gap is infinite already."""


def largest(values: Float32, count: int) -> Ids:
    """Indices of the `count` largest values, largest first, lowest index first on ties."""
    count = min(count, values.size)
    if count == 0:
        return np.empty(0, np.intp)
    place = values.size - count
    threshold = np.partition(values, place)[place]
    indices = np.flatnonzero(values >= threshold)
    order = np.argsort(-values[indices], kind="stable")
    return indices[order][:count]


def nucleus(weights: Float32, top_p: float) -> Ids:
    """Indices of the fewest largest weights that hold `top_p` of the sum, largest first.

    `weights` are not normalised, their maximum is 1. Sorting a vocabulary is slow and a nucleus
    is mostly small, so only weights above a falling cutoff are sorted. (Holtzman et al. 2020)
    """
    goal = top_p * float(weights.sum(dtype=np.float64))
    for cutoff in (1e-3, 1e-6, 1e-12, 0.0):
        indices = np.flatnonzero(weights >= cutoff)
        if float(weights[indices].sum(dtype=np.float64)) >= goal:
            break
    indices = indices[np.argsort(-weights[indices], kind="stable")]
    count = int(np.searchsorted(np.cumsum(weights[indices], dtype=np.float64), goal)) + 1
    return indices[:count]


def draw_token(logits: Float32, params: SamplingParams, uniform: float) -> int:
    """The token at `uniform` (in [0, 1)) of the distribution that `params` leaves of `logits`.

    The largest logit is finite and the temperature is above 0.
    """
    ids = None
    if 0 < params.top_k < logits.size:
        ids = largest(logits, params.top_k)
        logits = logits[ids]
    with np.errstate(over="ignore", under="ignore"):
        gaps = (logits - logits.max()) / np.float32(max(params.temperature, _SMALLEST_TEMPERATURE))
        weights: Float32 = np.exp(gaps)
    if params.top_p < 1:
        kept = nucleus(weights, params.top_p)
        ids, weights = (kept if ids is None else ids[kept]), weights[kept]
    if params.min_p > 0:
        kept = np.flatnonzero(weights >= np.float32(params.min_p))
        ids, weights = (kept if ids is None else ids[kept]), weights[kept]
    place = place_of(weights, uniform)
    return place if ids is None else int(ids[place])


def place_of(weights: Float32, uniform: float) -> int:
    """Index whose share of the running sum holds `uniform`; never one of weight 0."""
    cumulative = np.cumsum(weights, dtype=np.float64)
    total = cumulative[-1]
    target = min(uniform * total, np.nextafter(total, 0.0))
    return int(np.searchsorted(cumulative, target, side="right"))


def log_probabilities(logits: Float32, token_id: int, count: int) -> TokenLogprobs:
    """Of the token, and of the `count` most probable ones; the largest logit is finite."""
    top = largest(logits, count)
    peak = logits.max()
    with np.errstate(under="ignore"):
        total = np.exp(logits - peak).sum(dtype=np.float64)
    offset = float(peak) + float(np.log(total))
    return TokenLogprobs(
        chosen=float(logits[token_id]) - offset,
        top=tuple((int(index), float(logits[index]) - offset) for index in top),
    )
