"""Factors of nested scales, in NumPy: what a block can store of the scales that its groups want."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from quant.format.ggml_grid import BlockGrid, Floats, half
from quant.format.ggml_search import NEST_ROUNDS, SHARES
from quant.format.gguf_types import GgmlType
from tests.quant.format.slow_fit import Groups, Sums, added

_Number = TypeVar("_Number", bound=np.generic)


@dataclass(frozen=True)
class _Nest:
    """Blocks of groups. Arrays of one number per group are [groups]; `by_block` folds them."""

    groups: Groups
    rows: int
    per_block: int
    lowest: float
    highest: float

    def by_block(self, values: Floats) -> Floats:
        return values.reshape(-1, self.per_block)

    def spread(self, values: npt.NDArray[_Number]) -> npt.NDArray[_Number]:
        """[groups] of [blocks]."""
        return np.repeat(values, self.per_block)

    def total(self, values: Floats) -> Floats:
        """[blocks]: the sum over the groups of each block."""
        return added(self.by_block(values).T)

    def nested(self, wanted: Floats, factor: Floats, lowest: float) -> Floats:
        """Whole numbers [groups] with which the factors [blocks] come next to `wanted`."""
        nested: Floats = np.rint(wanted / self.spread(factor))
        return np.clip(nested, np.float32(lowest), np.float32(self.highest))

    def array(self, values: Floats) -> Floats:
        return values.reshape(self.rows, -1)


def nest_signed(kind: GgmlType, groups: Groups, scale: Floats, rows: int) -> BlockGrid:
    """The grid for types without a minimum. scale: what each group wants, [groups], either sign."""
    nest = _nest(kind, groups, rows)
    weight = groups.sums(scale).cc
    ends = [nest.lowest * s for s in SHARES] + [nest.highest * s for s in SHARES]
    d, sub = _start(nest, scale, weight, ends, _nonzero)
    error = _error(nest, nest.spread(d) * sub)
    for _ in range(NEST_ROUNDS):
        sub, error = _better_signed(nest, d, sub, error)
        d, error = _refit_signed(nest, d, sub, error)
    return BlockGrid(kind, nest.array(d), sub_scales=nest.array(sub))


def nest_affine(
    kind: GgmlType, groups: Groups, scale: Floats, minimum: Floats, rows: int
) -> BlockGrid:
    """The grid for types with a minimum. scale above 0, minimum not above 0: [groups]."""
    nest = _nest(kind, groups, rows)
    sums = groups.sums(scale, minimum)
    mean = sums.c / groups.w
    ends = [nest.highest * share for share in SHARES]
    # The minimum makes up for most of what a scale misses: what is left is the variance of codes.
    d, sub = _start(nest, scale, np.maximum(sums.cc - sums.c * mean, 0), ends, _from_one)
    wanted = np.maximum((nest.spread(d) * sub - scale) * mean - minimum, 0)
    m, least = _start(nest, wanted, groups.w, ends, _as_is)
    grid = _Affine(d, m, sub, least, np.empty(0, np.float32))
    grid = grid.scored(nest)
    for _ in range(NEST_ROUNDS):
        grid = _better_affine(nest, grid)
        grid = _refit_affine(nest, grid)
    return BlockGrid(kind, *(nest.array(a) for a in (grid.d, grid.m, grid.sub, grid.least)))


def _nest(kind: GgmlType, groups: Groups, rows: int) -> _Nest:
    layout = groups.levels.nested
    assert layout is not None
    lowest, highest = float(layout.lowest), float(layout.highest)
    return _Nest(groups, rows, kind.block // layout.group, lowest, highest)


def _nonzero(nested: Floats) -> Floats:
    """A scale of 0 would lose the group, and nothing could be divided by it."""
    return np.where(nested == 0, np.float32(1), nested)


def _from_one(nested: Floats) -> Floats:
    return np.maximum(nested, np.float32(1))


def _as_is(nested: Floats) -> Floats:
    return nested


def _start(
    nest: _Nest,
    wanted: Floats,
    weight: Floats,
    ends: list[float],
    mend: Callable[[Floats], Floats],
) -> tuple[Floats, Floats]:
    """(factor [blocks], nested [groups]) of least sum(weight * (wanted - factor * nested)**2).

    The factors tried put the group that wants most at one of `ends`; each is then refitted once.
    """
    folded = nest.by_block(wanted)
    at = np.abs(folded).argmax(axis=1)
    most = np.take_along_axis(folded, at[:, None], axis=1)[:, 0]
    best_cost = np.full(len(most), np.inf, np.float32)
    best, best_nested = half(most), np.ones_like(wanted)
    for end in ends:
        factor = half(most / np.float32(end))
        for _ in range(2):
            nested = mend(nest.nested(wanted, factor, nest.lowest))
            cost = nest.total(weight * np.square(wanted - nest.spread(factor) * nested))
            better = cost < best_cost
            best_cost = np.where(better, cost, best_cost)
            best = np.where(better, factor, best)
            best_nested = np.where(nest.spread(better), nested, best_nested)
            norm = nest.total(weight * nested * nested)
            fitted = nest.total(weight * wanted * nested) / np.where(norm > 0, norm, 1)
            factor = np.where(fitted * factor > 0, half(fitted), factor)
    return best, best_nested


def _error(nest: _Nest, scale: Floats) -> Floats:
    groups = nest.groups
    return groups.error(groups.sums(scale), scale)


def _better_signed(nest: _Nest, d: Floats, sub: Floats, error: Floats) -> tuple[Floats, Floats]:
    """Each group's nested scale moved next to what its codes want, with codes chosen anew."""
    groups, wide = nest.groups, nest.spread(d)
    scale = wide * sub
    wanted = groups.best_scale(groups.sums(scale), scale) / wide
    for candidate in (np.floor(wanted), np.ceil(wanted), sub - 1, sub + 1):
        tried = _nonzero(np.clip(candidate, np.float32(nest.lowest), np.float32(nest.highest)))
        its_error = _error(nest, wide * tried)
        better = its_error < error
        sub, error = np.where(better, tried, sub), np.where(better, its_error, error)
    return sub, error


def _refit_signed(nest: _Nest, d: Floats, sub: Floats, error: Floats) -> tuple[Floats, Floats]:
    """Each block's factor fitted to all of its codes; `error` [groups] goes along."""
    sums = nest.groups.sums(nest.spread(d) * sub)
    norm = nest.total(sub * sub * sums.cc)
    fitted = nest.total(sub * sums.xc) / np.where(norm > 0, norm, 1)
    tried = np.where(fitted * d > 0, half(fitted), d)
    its_error = _error(nest, nest.spread(tried) * sub)
    better = nest.total(its_error) < nest.total(error)
    return np.where(better, tried, d), np.where(nest.spread(better), its_error, error)


@dataclass(frozen=True)
class _Affine:
    """d, m: [blocks]; sub, least: whole numbers [groups]; error: [groups]."""

    d: Floats
    m: Floats
    sub: Floats
    least: Floats
    error: Floats

    def pair(self, nest: _Nest) -> tuple[Floats, Floats]:
        """Scale and minimum of each group."""
        return nest.spread(self.d) * self.sub, -(nest.spread(self.m) * self.least)

    def sums(self, nest: _Nest) -> Sums:
        return nest.groups.sums(*self.pair(nest))

    def scored(self, nest: _Nest) -> "_Affine":
        error = nest.groups.error(self.sums(nest), *self.pair(nest))
        return _Affine(self.d, self.m, self.sub, self.least, error)


def _better_affine(nest: _Nest, grid: _Affine) -> _Affine:
    """As `_better_signed`; with each scale comes the minimum that suits it."""
    groups, (scale, minimum) = nest.groups, grid.pair(nest)
    sums = groups.sums(scale, minimum)
    wanted, _ = groups.best_affine(sums, scale, minimum, True)
    wide_d, wide_m = nest.spread(grid.d), nest.spread(grid.m)
    low = np.floor(wanted / wide_d)
    sub, least, error = grid.sub, grid.least, grid.error
    for candidate in (low, low + 1, sub, sub - 1, sub + 1):
        tried = np.clip(candidate, np.float32(1), np.float32(nest.highest))
        depth = (wide_d * tried * sums.c - groups.sum_x) / groups.w
        its_least = nest.nested(depth, grid.m, 0.0)
        pair = (wide_d * tried, -(wide_m * its_least))
        its_error = groups.error(groups.sums(*pair), *pair)
        better = its_error < error
        sub, least = np.where(better, tried, sub), np.where(better, its_least, least)
        error = np.where(better, its_error, error)
    return _Affine(grid.d, grid.m, sub, least, error)


def _refit_affine(nest: _Nest, grid: _Affine) -> _Affine:
    """Both factors of each block fitted to all of its codes at once, two equations."""
    sums, groups = grid.sums(nest), nest.groups
    a = nest.total(grid.sub * grid.sub * sums.cc)
    b = nest.total(grid.sub * grid.least * sums.c)
    c = nest.total(grid.least * grid.least * groups.w)
    p, q = nest.total(grid.sub * sums.xc), -nest.total(grid.least * groups.sum_x)
    determinant = a * c - b * b
    usable = determinant > np.float32(1e-6) * a * c
    divisor = np.where(usable, determinant, np.float32(1))
    d_wanted, m_wanted = (p * c + b * q) / divisor, (a * q + b * p) / divisor
    usable &= (d_wanted > 0) & (m_wanted > 0)
    d: Floats = np.where(usable, half(d_wanted), grid.d)
    m: Floats = np.where(usable, half(m_wanted), grid.m)
    tried = _Affine(d, m, grid.sub, grid.least, grid.error).scored(nest)
    better = nest.total(tried.error) < nest.total(grid.error)
    wide = nest.spread(better)
    return _Affine(
        np.where(better, d, grid.d),
        np.where(better, m, grid.m),
        *(grid.sub, grid.least),
        np.where(wide, tried.error, grid.error),
    )
