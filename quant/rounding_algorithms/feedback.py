"""GPTQ's pass over the columns: round one, and let later ones make up for its error."""

import torch

from quant.kernels import _rounding
from quant.rounding_algorithms.factor import Factor
from quant.rounding_algorithms.grid import Grid, decode, nearest_levels
from quant.rounding_algorithms.walk import Walk


def feedback_levels(weight: torch.Tensor, factored: Factor, walk: Walk) -> torch.Tensor:
    """Algorithm 1 on a fixed grid: levels, float32 [out, in], in plain column order.

    Works on the transpose, so that the column in hand is contiguous. Inside a chunk each error is
    spread at once; columns beyond it get the whole chunk's errors in one product.
    """
    upper = factored.upper
    left = walk.visited(weight)
    levels = torch.empty_like(left)
    chunk_pass = _compiled_chunk if walk.compiled else _plain_chunk
    for chunk in walk.chunks():
        mixing = upper[chunk, chunk].T.contiguous()
        errors = chunk_pass(left[chunk], walk, chunk, mixing, levels[chunk])
        left[chunk.stop :].addmm_(upper[chunk, chunk.stop :].T, errors, alpha=-1.0)
    return walk.plain(levels)


def _compiled_chunk(
    left: torch.Tensor, walk: Walk, chunk: slice, mixing: torch.Tensor, levels: torch.Tensor
) -> torch.Tensor:
    errors = torch.empty_like(left)
    _rounding.feedback(
        left.numpy(),
        walk.scale.numpy(),
        walk.zero.numpy(),
        walk.group_of[chunk].numpy(),
        mixing.numpy(),
        *walk.bounds(),
        levels.numpy(),
        errors.numpy(),
    )
    return errors


def _plain_chunk(
    left: torch.Tensor, walk: Walk, chunk: slice, mixing: torch.Tensor, levels: torch.Tensor
) -> torch.Tensor:
    """The same in torch, for any levels. left, levels: float32 [columns, out], both written."""
    errors = torch.empty_like(left)
    for j in range(len(left)):
        grid: Grid = walk.grid(chunk.start + j)
        levels[j] = nearest_levels(left[j], grid, walk.scheme)
        errors[j] = (left[j] - decode(levels[j], grid)) / mixing[j, j]
        left[j + 1 :].addr_(mixing[j + 1 :, j], errors[j], alpha=-1.0)
    return errors
