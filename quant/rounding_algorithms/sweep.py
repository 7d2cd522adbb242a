"""Coordinate descent over levels: each moves to its best value while all others stand still."""

import torch

from quant.kernels import _rounding
from quant.rounding_algorithms.grid import decode, nearest_levels
from quant.rounding_algorithms.walk import Walk


def sweep_levels(
    levels: torch.Tensor, product: torch.Tensor, matrix: torch.Tensor, walk: Walk
) -> tuple[torch.Tensor, torch.Tensor]:
    """One sweep in the order of `walk`: new levels and product, float32 [out, in].

    With D = W - Q and G = D H (`product`), the best value of column j alone is q_j + G_j / H_jj,
    rounded to the grid; G then moves by -change * H_j. Works on transposes and in chunks, as GPTQ
    does. matrix: float32 [in, in], H with rows and columns in that order.
    """
    gradient, current = walk.visited(product), walk.visited(levels)
    chunk_pass = _compiled_chunk if walk.compiled else _plain_chunk
    for chunk in walk.chunks():
        mixing = matrix[chunk, chunk].contiguous()
        changes = chunk_pass(gradient[chunk], walk, chunk, mixing, current[chunk])
        gradient.addmm_(matrix[chunk].T, changes, alpha=-1.0)
    return walk.plain(current), walk.plain(gradient)


def _compiled_chunk(
    gradient: torch.Tensor, walk: Walk, chunk: slice, mixing: torch.Tensor, levels: torch.Tensor
) -> torch.Tensor:
    changes = torch.empty_like(gradient)
    _rounding.sweep(
        gradient.numpy(),
        walk.scale.numpy(),
        walk.zero.numpy(),
        walk.group_of[chunk].numpy(),
        mixing.numpy(),
        *walk.bounds(),
        levels.numpy(),
        changes.numpy(),
    )
    return changes


def _plain_chunk(
    gradient: torch.Tensor, walk: Walk, chunk: slice, mixing: torch.Tensor, levels: torch.Tensor
) -> torch.Tensor:
    """The same in torch, for any levels. levels: float32 [columns, out], written."""
    left, changes = gradient.clone(), torch.empty_like(gradient)
    for j in range(len(left)):
        grid = walk.grid(chunk.start + j)
        curvature = mixing[j, j] if mixing[j, j] > 0 else torch.ones(())
        value = decode(levels[j], grid)
        moved = nearest_levels(value + left[j] / curvature, grid, walk.scheme)
        changes[j] = (moved - levels[j]) * grid.scale
        levels[j] = moved
        left[j + 1 :].addr_(mixing[j + 1 :, j], changes[j], alpha=-1.0)
    return changes
