"""Scales of single groups by least weighted error, sum(h * (x - rounded)**2), in NumPy.

Arrays lie with the elements of a group along the first axis, [size, groups], so that every step is
one sweep over long rows. Only a strict improvement replaces a scale: the result is deterministic.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quant.format.ggml_grid import Floats, Levels
from quant.format.ggml_search import NUDGES

_TINY = np.float32(1e-30)


@dataclass(frozen=True)
class Sums:
    """What the error of one choice of codes c is made of; each [groups]. With scale s, minimum m:
    error = xx - 2 s xc - 2 m x + s**2 cc + 2 s m c + m**2 w."""

    cc: Floats
    c: Floats
    xc: Floats


def added(values: Floats) -> Floats:
    """The sum along the first axis, in its order."""
    total = np.zeros(values.shape[1:], np.float32)
    for value in values:
        total += value
    return total


class Groups:
    """Groups to be fitted: x and h, float32 [size, groups], h above 0."""

    def __init__(self, x: Floats, h: Floats, levels: Levels) -> None:
        self.x, self.h, self.levels = x, h, levels
        hx = h * x
        self.w, self.sum_x, self.xx = added(h), added(hx), added(hx * x)

    def sums(self, scale: Floats, minimum: Floats | None = None) -> Sums:
        """Of the nearest codes on the grid of `scale` (not 0) and `minimum`, each [groups]."""
        inverse = np.float32(1) / scale
        steps = self.x * inverse
        if minimum is not None:
            steps -= minimum * inverse
        codes = self.levels.snap(steps)
        weighted = self.h * codes
        total = added(weighted) if minimum is not None else self.w
        return Sums(added(weighted * codes), total, added(weighted * self.x))

    def error(self, sums: Sums, scale: Floats, minimum: Floats | None = None) -> Floats:
        """[groups]: the weighted error of those codes with this scale and minimum."""
        error: Floats = self.xx - scale * (2 * sums.xc - scale * sums.cc)
        if minimum is not None:
            error = error + minimum * (minimum * self.w - 2 * (self.sum_x - scale * sums.c))
        return error

    def best_scale(self, sums: Sums, otherwise: Floats) -> Floats:
        """[groups]: of least error without a minimum; `otherwise` where all codes are 0."""
        found = sums.xc / np.maximum(sums.cc, _TINY)
        best: Floats = np.where((sums.cc > 0) & (found != 0), found, otherwise)
        return best

    def best_affine(
        self, sums: Sums, scale: Floats, minimum: Floats, below_zero: bool
    ) -> tuple[Floats, Floats]:
        """Scale (above 0) and minimum of least error; the given ones where codes are all alike.
        below_zero: the minimum may not be above 0."""
        determinant = self.w * sums.cc - sums.c * sums.c
        usable = determinant > np.float32(1e-6) * self.w * sums.cc
        divisor = np.where(usable, determinant, np.float32(1))
        s = (self.w * sums.xc - self.sum_x * sums.c) / divisor
        m = (self.sum_x * sums.cc - sums.c * sums.xc) / divisor
        if below_zero:
            above = m > 0
            s = np.where(above, sums.xc / np.maximum(sums.cc, _TINY), s)
            m = np.where(above, np.float32(0), m)
        usable &= s > 0
        return np.where(usable, s, scale), np.where(usable, m, minimum)


def fit_signed(
    groups: Groups, reaches: Sequence[float], rounds: int, known: Floats | None = None
) -> Floats:
    """[groups]: a scale of either sign for types without a minimum.

    reaches: levels that the largest magnitude is tried at, negative ones for negative scales.
    rounds: of choosing codes and scale in turn afterwards, around the best scale so far. known: a
    scale, not 0, to begin with; that of its source where the weight was rounded before.
    """
    largest = np.maximum(np.abs(groups.x).max(axis=0), _TINY)
    best: Floats = largest / np.float32(reaches[0])
    error = groups.error(groups.sums(best), best)
    if known is not None:
        best, error = _better(known, groups.error(groups.sums(known), known), best, error)
    for reach in reaches:
        scale = largest / np.float32(reach)
        best, error = _refitted(groups, scale, best, error)
    for _ in range(rounds):
        for nudge in NUDGES:
            best, error = _refitted(groups, best * np.float32(nudge), best, error)
    return best


def fit_affine(
    groups: Groups,
    margins: Sequence[tuple[float, float]],
    rounds: int,
    below_zero: bool,
    known: tuple[Floats, Floats] | None = None,
) -> tuple[Floats, Floats]:
    """(scale, minimum), each [groups]. margins: shares of the range to leave out at either end.
    known: as for `fit_signed`, a scale above 0 with its minimum."""
    low, high = groups.x.min(axis=0), groups.x.max(axis=0)
    if below_zero:
        low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
    width = np.maximum(high - low, _TINY)
    top = np.float32(groups.levels.highest)
    best_scale, best_minimum = width / top, low
    error = groups.error(groups.sums(best_scale, best_minimum), best_scale, best_minimum)
    if known is not None:
        its_error = groups.error(groups.sums(*known), *known)
        better = its_error < error
        best_scale = np.where(better, known[0], best_scale)
        best_minimum = np.where(better, known[1], best_minimum)
        error = np.where(better, its_error, error)
    for below, above in margins:
        scale = width * np.float32((1 - below - above) / float(top))
        minimum = low + width * np.float32(below)
        best_scale, best_minimum, error = _refitted_affine(
            groups, (scale, minimum), (best_scale, best_minimum), error, below_zero
        )
    for _ in range(rounds):
        for nudge in NUDGES:
            pair = (best_scale, best_minimum)
            moved = (best_scale * np.float32(nudge), best_minimum)
            best_scale, best_minimum, error = _refitted_affine(
                groups, moved, pair, error, below_zero
            )
    return best_scale, best_minimum


def _refitted(groups: Groups, scale: Floats, best: Floats, error: Floats) -> tuple[Floats, Floats]:
    """The best scale for the codes of `scale`, where it loses less than `best`."""
    sums = groups.sums(scale)
    candidate = groups.best_scale(sums, scale)
    return _better(candidate, groups.error(sums, candidate), best, error)


def _better(
    candidate: Floats, its_error: Floats, best: Floats, error: Floats
) -> tuple[Floats, Floats]:
    better: npt.NDArray[np.bool_] = its_error < error
    return np.where(better, candidate, best), np.where(better, its_error, error)


def _refitted_affine(
    groups: Groups,
    pair: tuple[Floats, Floats],
    best: tuple[Floats, Floats],
    error: Floats,
    below_zero: bool,
) -> tuple[Floats, Floats, Floats]:
    sums = groups.sums(*pair)
    scale, minimum = groups.best_affine(sums, *pair, below_zero)
    its_error = groups.error(sums, scale, minimum)
    better = its_error < error
    return (
        np.where(better, scale, best[0]),
        np.where(better, minimum, best[1]),
        np.where(better, its_error, error),
    )
