"""Cholesky in blocks: threads share the work, and blocks of zeros are not multiplied.

How the work is divided follows from the size of the matrix alone, so that any number of threads
gives the same bits.
"""

from collections.abc import Sequence
from functools import partial

import torch

from quant.workers import Workers, run_jobs

_BLOCK = 128


def inverse_of_factor(matrix: torch.Tensor, workers: Workers | None) -> torch.Tensor | None:
    """inverse(L), where L is lower triangular and L L^T = `matrix`, float64 [n, n], symmetric.

    None when a pivot is not positive, or no number. Overwrites `matrix`. Corners, the blocks on the
    diagonal, are inverted one by one, so that all else is products, which are the fastest there is.
    """
    blocks = _blocks(len(matrix))
    corners: list[torch.Tensor] = []
    for i, block in enumerate(blocks):
        below = blocks[i + 1 :]
        run_jobs([partial(_take_off, matrix, row, block) for row in blocks[i:]], workers)
        corner, info = torch.linalg.cholesky_ex(matrix[block, block])
        if int(info) != 0 or not bool(torch.isfinite(corner).all()):
            return None
        identity = torch.eye(len(corner), dtype=matrix.dtype)
        corners.append(torch.linalg.solve_triangular(corner, identity, upper=False))
        run_jobs([partial(_divide, matrix[row, block], corners[i]) for row in below], workers)
    inverse = torch.zeros_like(matrix)
    columns = range(len(blocks))
    run_jobs([partial(_invert, matrix, inverse, blocks[i:], corners[i:]) for i in columns], workers)
    return inverse


def _take_off(matrix: torch.Tensor, row: slice, block: slice) -> None:
    """From a block what the columns before it account for."""
    start = block.start
    matrix[row, block].addmm_(matrix[row, :start], matrix[block, :start].T, alpha=-1.0)


def _divide(part: torch.Tensor, corner: torch.Tensor) -> None:
    part.copy_(part @ corner.T)


def _invert(
    lower: torch.Tensor,
    inverse: torch.Tensor,
    blocks: Sequence[slice],
    corners: Sequence[torch.Tensor],
) -> None:
    """The first of `blocks`, as columns of the inverse, from the diagonal down."""
    column = blocks[0]
    inverse[column, column] = corners[0]
    for row, corner in zip(blocks[1:], corners[1:], strict=True):
        done = slice(column.start, row.start)
        inverse[row, column] = -(corner @ (lower[row, done] @ inverse[done, column]))


def _blocks(count: int) -> list[slice]:
    return [slice(start, min(start + _BLOCK, count)) for start in range(0, count, _BLOCK)]
