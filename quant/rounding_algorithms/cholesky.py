"""Triangular factors in blocks: threads share the work, and blocks of zeros are not multiplied.

How the work is divided follows from the size of the matrix alone, so that any number of threads
gives the same bits.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch

from quant.workers import Workers

_BLOCK = 128


def cholesky(matrix: torch.Tensor, workers: Workers | None) -> torch.Tensor | None:
    """Lower L with L L^T = `matrix`, float64 [n, n], which is overwritten with it.

    None when a pivot is not positive. Each block column in turn takes off what those before it
    account for, and is then divided by its corner.
    """
    for start in range(0, len(matrix), _BLOCK):
        stop = min(start + _BLOCK, len(matrix))
        if start:
            rows = _blocks(start, len(matrix))
            _run([partial(_take_off, matrix, row, start, stop) for row in rows], workers)
        corner, info = torch.linalg.cholesky_ex(matrix[start:stop, start:stop])
        if int(info) != 0:
            return None
        matrix[start:stop, start:stop] = corner
        matrix[start:stop, stop:] = 0.0
        rows = _blocks(stop, len(matrix))
        _run([partial(_divide, matrix[row, start:stop], corner) for row in rows], workers)
    return matrix


def inverse_of_lower(lower: torch.Tensor, workers: Workers | None) -> torch.Tensor:
    """The inverse of a lower triangular matrix, float64 [n, n]: zeros above a column stay so."""
    inverse = torch.zeros_like(lower)
    _run([partial(_invert, lower, inverse, part) for part in _blocks(0, len(lower))], workers)
    return inverse


def _take_off(matrix: torch.Tensor, row: slice, start: int, stop: int) -> None:
    before = matrix[start:stop, :start]
    matrix[row, start:stop].addmm_(matrix[row, :start], before.T, alpha=-1.0)


def _divide(part: torch.Tensor, corner: torch.Tensor) -> None:
    part.copy_(torch.linalg.solve_triangular(corner.T, part, upper=True, left=False))


def _invert(lower: torch.Tensor, inverse: torch.Tensor, part: slice) -> None:
    start, stop = part.start, part.stop
    identity = torch.eye(len(lower) - start, stop - start, dtype=lower.dtype)
    inverse[start:, part] = torch.linalg.solve_triangular(
        lower[start:, start:], identity, upper=False
    )


def _blocks(start: int, stop: int) -> list[slice]:
    return [slice(s, min(s + _BLOCK, stop)) for s in range(start, stop, _BLOCK)]


def _run(jobs: Sequence[Callable[[], None]], workers: Workers | None) -> None:
    if workers is not None:
        workers.run(jobs)
        return
    for job in jobs:
        job()
