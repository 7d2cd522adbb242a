"""Scales that make columns of one group alike, so that a step of the group suits all of them.

A group's step follows from its largest weights, so that its error is about step**2 in every column,
and loses that times what an error in the column costs, c. At scales s, columns are w * s and costs
c / s**2: the loss of a group is the sum over rows of |w * s|**2, a norm that is nearly the largest
magnitude, times the sum of c / s**2. Unlike AWQ's, this objective needs no forward.

Where it is least, a column has the same share of the group's steps as of its costs; each round
moves every scale towards that.
"""

from collections.abc import Sequence
from dataclasses import dataclass

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
class Reader:
    """weight: float32 [out, in] that reads the channels, in groups of `size` columns, of which the
    last may be shorter."""

    weight: torch.Tensor
    size: int


def balanced_scale(
    point: FoldPoint, readers: Sequence[Reader], costs: torch.Tensor
) -> torch.Tensor | None:
    """The scale float32 [channels] of least loss, of geometric mean 1; None where it would gain
    next to nothing.

    costs: float32 [in], what a squared error in each column costs.
    """
    costs = costs.clamp(min=float(costs.mean()) * _SMALLEST_COST + _TINY)
    logs = torch.zeros(point.channels)
    for _ in range(_ROUNDS):
        scale = point.spread(logs.exp())
        wanted, had = torch.zeros_like(scale), torch.zeros_like(scale)
        for reader in readers:
            cost, step = _shares(reader, costs, scale)
            wanted += cost
            had += step
        ratio = point.gather(wanted).clamp(min=_TINY) / point.gather(had).clamp(min=_TINY)
        # A scale's steps grow with its power _NORM, and its cost falls with its square.
        move = (ratio.log() / (_NORM + 2)).clamp(-_LARGEST_MOVE, _LARGEST_MOVE)
        logs += move
    scale = (logs - logs.mean()).exp()
    before = balance_loss(readers, costs, torch.ones_like(costs))
    gained = balance_loss(readers, costs, point.spread(scale)) < (1.0 - _LEAST_GAIN) * before
    return scale if gained else None


def balance_loss(readers: Sequence[Reader], costs: torch.Tensor, scale: torch.Tensor) -> float:
    """The loss of all groups at `scale` [in], up to a factor. A short last group counts as one."""
    total = 0.0
    for reader in readers:
        _, steps = _steps(reader, scale)
        cost = _groups((costs / scale.square())[None], reader.size)[0].sum(-1)
        total += float((steps.double() * cost.double()).sum())
    return total


def _shares(
    reader: Reader, costs: torch.Tensor, scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Two [in], equal where the loss is least: the column's part of its group's costs, times the
    group's steps; and its part of the steps, times the group's costs."""
    parts, steps = _steps(reader, scale)
    cost = _groups((costs / scale.square())[None], reader.size)[0]
    columns = len(costs)
    wanted = (cost * steps[:, None]).reshape(-1)[:columns]
    had = (parts * cost.sum(-1, keepdim=True)).reshape(-1)[:columns]
    return wanted, had


def _steps(reader: Reader, scale: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Squared steps over all rows: each column's part [groups, size], and the whole [groups]."""
    rows = max(1, _CHUNK_ELEMENTS // len(scale))
    chunks = [_chunk_steps(part, reader.size, scale) for part in torch.split(reader.weight, rows)]
    parts = torch.stack([part for part, _ in chunks]).sum(0)
    return parts, torch.stack([whole for _, whole in chunks]).sum(0)


def _chunk_steps(
    weight: torch.Tensor, size: int, scale: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    scaled = _groups((weight * scale).abs_(), size)
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
