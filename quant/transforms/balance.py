"""Scales that make columns of one group alike, so that a step of the group suits all of them.

A group's step follows from its largest weights, so that its error is about step**2 in every column,
and loses that times what an error in the column costs, c. At scales s, columns are w * s and costs
c / s**2: the loss of a group is the sum over rows of |w * s|**2, a norm that is nearly the largest
magnitude, times the sum of c / s**2. Unlike AWQ's, this objective needs no forward.

Where inputs are rounded to integers as well, it is the other way round for them: tokens are the
rows, x / s has the steps, and an error costs what the weights make of it, the sum of (w * s)**2.

Where the loss is least, a column has the same share of the group's steps as of its costs; each
round moves every scale towards that.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from quant.transforms.points import FoldPoint

_NORM = 8
_ROUNDS = 20
_LARGEST_MOVE = 0.3
"""Of a scale's logarithm in one round."""
_SMALLEST_COST = 0.01
"""As a part of the mean: inputs that calibration never saw may come up later."""
_LEAST_GAIN = 0.03
"""A smaller part of the loss, as it is modelled here, does not show in what rounding loses."""
_TINY = 1e-30
_CHUNK_ELEMENTS = 1 << 17
"""Rows are gone through in chunks whose temporaries stay in a processor's cache."""


@dataclass(frozen=True)
class RoundedRows:
    """values: float32 [rows, columns], in groups of `size` columns, of which the last may be
    shorter. costs: float32 [columns], what a squared error in any row costs. levels: steps from 0
    to the largest value of a group. inverse: the scale divides these columns.
    """

    values: torch.Tensor
    size: int
    costs: torch.Tensor
    levels: float
    inverse: bool = False


def balanced_scale(point: FoldPoint, rounded: Sequence[RoundedRows]) -> torch.Tensor | None:
    """The scale float32 [channels] of least loss, of geometric mean 1; None where it would gain
    next to nothing.

    rounded: the readers' weights, and where they are rounded, their inputs.
    """
    rounded = [_with_least_costs(part) for part in rounded]
    logs = torch.zeros(point.channels)
    for _ in range(_ROUNDS):
        scale = point.spread(logs.exp())
        rising, falling = torch.zeros_like(scale), torch.zeros_like(scale)
        for part in rounded:
            cost, step = _shares(part, scale)
            rising += step if part.inverse else cost
            falling += cost if part.inverse else step
        ratio = point.gather(rising).clamp(min=_TINY) / point.gather(falling).clamp(min=_TINY)
        # Steps grow with a scale's power _NORM, costs fall with its square, or the other way round.
        move = (ratio.log() / (_NORM + 2)).clamp(-_LARGEST_MOVE, _LARGEST_MOVE)
        logs += move
    scale = (logs - logs.mean()).exp()
    before = balance_loss(rounded, torch.ones_like(rounded[0].costs))
    gained = balance_loss(rounded, point.spread(scale)) < (1.0 - _LEAST_GAIN) * before
    return scale if gained else None


def balance_loss(rounded: Sequence[RoundedRows], scale: torch.Tensor) -> float:
    """The loss of all groups at `scale` [columns]. A short last group counts as one."""
    total = 0.0
    for part in rounded:
        own = 1 / scale if part.inverse else scale
        _, steps = _steps(part, own)
        cost = _groups((part.costs / own.square())[None], part.size)[0].sum(-1)
        total += float((steps.double() * cost.double()).sum()) / part.levels**2
    return total


def _with_least_costs(part: RoundedRows) -> RoundedRows:
    least = float(part.costs.mean()) * _SMALLEST_COST + _TINY
    return replace(part, costs=part.costs.clamp(min=least))


def _shares(part: RoundedRows, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Two [columns], equal where the loss is least: the column's part of its group's costs, times
    the group's steps; and its part of the steps, times the group's costs."""
    own = 1 / scale if part.inverse else scale
    parts, steps = _steps(part, own)
    cost = _groups((part.costs / own.square() / part.levels**2)[None], part.size)[0]
    columns = len(scale)
    costs = (cost * steps[:, None]).reshape(-1)[:columns]
    return costs, (parts * cost.sum(-1, keepdim=True)).reshape(-1)[:columns]


def _steps(part: RoundedRows, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared steps over all rows: each column's part [groups, size], and the whole [groups]."""
    rows = max(1, _CHUNK_ELEMENTS // len(scale))
    chunks = [_chunk_steps(some, part.size, scale) for some in torch.split(part.values, rows)]
    parts = torch.stack([shares for shares, _ in chunks]).sum(0)
    return parts, torch.stack([whole for _, whole in chunks]).sum(0)


def _chunk_steps(
    values: torch.Tensor, size: int, scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    scaled = _groups((values * scale).abs_(), size)
    largest = scaled.amax(-1, keepdim=True).clamp_(min=_TINY)
    powers = scaled.div_(largest).square_().square_().square_()
    sums = powers.sum(-1, keepdim=True).clamp_(min=_TINY)
    steps = largest.square() * sums.pow(2 / _NORM)
    return powers.mul_(steps / sums).sum(0), steps.sum(0)[:, 0]


def _groups(values: torch.Tensor, size: int) -> torch.Tensor:
    """[rows, columns] as [rows, groups, size], filled up with zeros."""
    rows, columns = values.shape
    padded = torch.nn.functional.pad(values, (0, -columns % size))
    return padded.reshape(rows, -1, size)
