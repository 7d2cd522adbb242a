"""Pure functions over one row of logits, float32 [vocab]: which tokens stay, and one draw."""

import numpy as np
import numpy.typing as npt

from runtime.engine.request import SamplingParams, TokenLogprobs

Float32 = npt.NDArray[np.float32]
Ids = npt.NDArray[np.intp]

_SMALLEST_TEMPERATURE = 1e-30
"""Below it float32 division by the temperature is not defined; every gap is infinite already."""

_RUN = 256
"""Weights per partial sum."""


def heaviest(values: Float32, count: int) -> Ids:
    """Indices of the `count` largest values, ascending; the lowest index wins a tie."""
    if count >= values.size:
        return np.arange(values.size)
    if count == 0:
        return np.empty(0, np.intp)
    place = values.size - count
    return _above(values, np.partition(values, place)[place], count)


def largest(values: Float32, count: int) -> Ids:
    """Indices of the `count` largest values, largest first; the lowest index wins a tie."""
    indices = heaviest(values, count)
    return indices[np.argsort(-values[indices], kind="stable")]


def nucleus(weights: Float32, top_p: float) -> Ids:
    """Indices, ascending, of the fewest largest weights that hold `top_p` of the sum.

    `weights` are not normalised, their maximum is 1. Sorting a vocabulary is slow and a nucleus
    is mostly small, so only weights above a falling cutoff are sorted. (Holtzman et al. 2020)
    """
    goal = top_p * float(weights.sum(dtype=np.float64))
    for cutoff in (1e-2, 1e-4, 1e-8, 0.0):
        indices = np.flatnonzero(weights >= cutoff)
        kept = weights[indices]
        if float(kept.sum(dtype=np.float64)) >= goal:
            break
    descending = np.sort(kept)[::-1]
    count = int(np.searchsorted(np.cumsum(descending, dtype=np.float64), goal)) + 1
    if count >= kept.size:
        return indices
    return indices[_above(kept, descending[count - 1], count)]


def _above(values: Float32, threshold: np.float32, count: int) -> Ids:
    """Indices of the values above the `count`-th largest, and the first ones that equal it."""
    above = np.flatnonzero(values > threshold)
    ties = np.flatnonzero(values == threshold)[: count - above.size]
    return np.sort(np.concatenate([above, ties]))


def draw_token(logits: Float32, params: SamplingParams, uniform: float) -> int:
    """The token at `uniform` (in [0, 1)) of the distribution that `params` leaves of `logits`.

    The largest logit is finite and the temperature is above 0.
    """
    ids = None
    if 0 < params.top_k < logits.size:
        ids = heaviest(logits, params.top_k)
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
    """Index whose share of the running sum holds `uniform`; never one of weight 0.

    Two levels, because a running sum over a whole vocabulary costs more than all the rest.
    """
    exact = weights.astype(np.float64)
    run_ends = np.cumsum(np.add.reduceat(exact, np.arange(0, exact.size, _RUN)))
    target = _below(uniform * run_ends[-1], run_ends[-1])
    run = int(np.searchsorted(run_ends, target, side="right"))
    within = np.cumsum(exact[run * _RUN : (run + 1) * _RUN])
    rest = target - (run_ends[run - 1] if run else 0.0)
    return run * _RUN + int(np.searchsorted(within, _below(rest, within[-1]), side="right"))


def _below(value: float, limit: float) -> float:
    """`value`, or where rounding took it there, the largest number below `limit`."""
    return min(value, float(np.nextafter(limit, 0.0)))


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
