"""Clipping each group's range where that costs the output least (AWQ's second search)."""

import torch

from quant.format.errors import UnsupportedModelError
from quant.transforms.nearest import Nearest

_STEPS = 10
_SHRINK = 0.05
_ROWS = 256


def clip_groups(
    name: str, weight: torch.Tensor, inputs: torch.Tensor, nearest: Nearest
) -> torch.Tensor:
    """`weight` (float32 [out, in]), each group within the share of its largest magnitude that
    loses least: 1, 0.95, ... 0.55.

    inputs: float32 [tokens, in]; the loss of a group is that of its part of the sum alone, over
    all tokens. Rows are clipped on their own, ties keep the wider range.
    """
    size = nearest.group_size(name, weight.shape[1])
    if weight.shape[1] % size:
        raise UnsupportedModelError(f"{name}: groups of {size} do not divide its columns")
    moments = _group_moments(inputs, size)
    parts = [_clip_rows(name, rows, moments, nearest) for rows in torch.split(weight, _ROWS)]
    return torch.cat(parts)


def _group_moments(inputs: torch.Tensor, size: int) -> torch.Tensor:
    """float32 [groups, size, size]: the sum of x x^T inside each group of columns."""
    groups = inputs.reshape(len(inputs), -1, size).transpose(0, 1)
    return groups.transpose(1, 2) @ groups


def _clip_rows(
    name: str, weight: torch.Tensor, moments: torch.Tensor, nearest: Nearest
) -> torch.Tensor:
    count, size = moments.shape[:2]
    original = weight.reshape(len(weight), count, size)
    most = original.abs().amax(-1, keepdim=True)
    best, least = original, torch.full(most.shape, torch.inf)
    for step in range(_STEPS):
        bound = most * (1.0 - step * _SHRINK)
        clipped = torch.maximum(torch.minimum(original, bound), -bound)
        rounded = nearest(name, clipped.reshape(weight.shape)).reshape(original.shape)
        lost = rounded - original
        error = (torch.einsum("rgi,gij->rgj", lost, moments) * lost).sum(-1, keepdim=True)
        better = error < least
        best, least = torch.where(better, clipped, best), torch.where(better, error, least)
    return best.reshape(weight.shape)
