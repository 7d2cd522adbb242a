"""Scales that make columns of one group alike, so that a step of the group suits all of them.

A group's step follows from its largest weight, so that its error is about step**2 for every column,
and costs that times the mean square h of the column's input. At scales s, columns are w * s and
inputs x / s: the loss of a group is the sum over rows of max |w * s|**2 times the sum of h / s**2.
Unlike AWQ's, this objective needs no forward: any number of scales can be tried, for any reader.
"""

from collections.abc import Sequence
from functools import partial

import torch

from quant.transforms.observe import run_jobs
from quant.workers import Workers

_INPUT_EXPONENTS = (0.0, 0.0625, 0.125, 0.1875, 0.25)
_WEIGHT_EXPONENTS = (0.0, 0.25, 0.5, 0.75, 1.0)
_SMALLEST = 1e-8


def balanced_scale(
    weights: Sequence[torch.Tensor],
    sizes: Sequence[int],
    energy: torch.Tensor,
    workers: Workers | None = None,
) -> torch.Tensor | None:
    """The scale float32 [in] of least loss, of geometric mean 1; None where none is better than 1.

    weights: float32 [out, in] of the readers, whose groups have `sizes` columns. energy: float32
    [in], mean square of each input. Tried are h**a / (root mean square of the column)**b.
    """
    column = torch.cat(list(weights)).square().mean(0).sqrt()
    logs = column.clamp(min=float(column.max()) * _SMALLEST + 1e-30).log()
    inputs = energy.clamp(min=float(energy.max()) * _SMALLEST**2 + 1e-30).log()
    exponents = [a * inputs - b * logs for a in _INPUT_EXPONENTS for b in _WEIGHT_EXPONENTS]
    scales = [torch.exp(exponent - exponent.mean()) for exponent in exponents]
    tried = [torch.ones_like(column), *scales]
    jobs = [partial(balance_loss, weights, sizes, energy, scale) for scale in tried]
    losses = run_jobs(jobs, workers)
    best = losses.index(min(losses))
    return None if best == 0 else tried[best]


def balance_loss(
    weights: Sequence[torch.Tensor],
    sizes: Sequence[int],
    energy: torch.Tensor,
    scale: torch.Tensor,
) -> float:
    """The loss of all groups at `scale` [in], up to a factor. A short last group counts as one."""
    total = 0.0
    for weight, size in zip(weights, sizes, strict=True):
        steps = _groups((weight * scale).abs(), size).amax(-1).square().sum(0)
        costs = _groups((energy / scale.square())[None], size).sum(-1)[0]
        total += float((steps.double() * costs.double()).sum())
    return total


def _groups(values: torch.Tensor, size: int) -> torch.Tensor:
    """[rows, columns] as [rows, groups, size], filled up with zeros."""
    rows, columns = values.shape
    padded = torch.nn.functional.pad(values, (0, -columns % size))
    return padded.reshape(rows, -1, size)
