"""Sums of outer products over tokens, divided into the same jobs for any number of threads.

Rows that bfloat16 holds exactly are multiplied as such: products are exact in both types and sums
are float32 in both, and processors are twice as fast at it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from quant.kernels import _moments

_TILE_COLUMNS = 256
_JOB_PANELS = 3
"""Rows of the sum that a job fills: their inputs stay in a processor's cache meanwhile."""


@dataclass(frozen=True)
class Rows:
    """Rows [tokens, columns] to be multiplied. values: float32. packed: bfloat16 numbers, as
    `quant.kernels._moments` wants them, in their place."""

    columns: int
    values: torch.Tensor | None
    packed: npt.NDArray[np.uint16] | None


@dataclass(frozen=True)
class Term:
    """weight * left^T right, float32 [left's columns, right's columns]; tokens agree."""

    left: Rows
    right: Rows
    weight: float


def rows_of(values: torch.Tensor, as_bfloat16: bool) -> Rows:
    """values: [tokens, columns], any float type. as_bfloat16: round to that first; all rows of a
    sum must agree in it."""
    columns = values.shape[-1]
    if not as_bfloat16:
        return Rows(columns, values.float(), None)
    if not _moments.supported():
        return Rows(columns, values.bfloat16().float(), None)
    bits = values.bfloat16().contiguous().view(torch.uint16).numpy()
    packed = np.empty(_moments.packed_shape(*bits.shape), np.uint16)
    _moments.pack_rows(bits, packed)
    return Rows(columns, None, packed)


def product_jobs(
    total: torch.Tensor, terms: Sequence[Term], upper: bool
) -> list[Callable[[], None]]:
    """Jobs that add `terms` to `total`, in their order. upper: of a square, what lies on and right
    of its diagonal; more may be filled."""
    if not terms:
        return []
    if terms[0].left.packed is None:
        starts = range(0, len(total), _TILE_COLUMNS)
        return [partial(_add_values, total, terms, upper, start) for start in starts]
    panels = terms[0].left.packed.shape[1]
    firsts = range(0, panels, _JOB_PANELS)
    return [partial(_add_packed, total, terms, upper, first) for first in firsts]


def _add_values(total: torch.Tensor, terms: Sequence[Term], upper: bool, start: int) -> None:
    left_out = start if upper else 0
    tile = total[start : start + _TILE_COLUMNS, left_out:]
    for term in terms:
        assert term.left.values is not None and term.right.values is not None
        down = term.left.values[:, start : start + _TILE_COLUMNS]
        tile.addmm_(down.T, term.right.values[:, left_out:], alpha=term.weight)


def _add_packed(total: torch.Tensor, terms: Sequence[Term], upper: bool, first: int) -> None:
    for term in terms:
        left, right = term.left.packed, term.right.packed
        assert left is not None and right is not None
        last = min(first + _JOB_PANELS, left.shape[1])
        _moments.add_products(left, right, term.weight, upper, first, last, total.numpy())
