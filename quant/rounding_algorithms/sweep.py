"""Coordinate descent over levels: each moves to its best value while all others stand still."""

import torch

from quant.format.scheme import QuantizedScheme
from quant.rounding_algorithms.grid import Grid, decode, nearest_levels

_COLUMN_CHUNK = 128


def sweep_levels(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    levels: torch.Tensor,
    wide: Grid,
    order: torch.Tensor,
    scheme: QuantizedScheme,
) -> torch.Tensor:
    """One sweep over the columns in `order`; returns new levels, float32 [out, in].

    With D = W - Q and G = D H, the best value of column j alone is q_j + G_j / H_jj, rounded to the
    grid; G then moves by -change * H_j. Works on transposes and in chunks, as GPTQ does. `wide`:
    the grid of each column.
    """
    matrix = hessian[order][:, order]
    lost = weight - decode(levels, wide)
    gradient = matrix @ lost.T[order]
    curvature = matrix.diagonal()
    curvature = torch.where(curvature > 0, curvature, torch.ones_like(curvature))
    scale = wide.scale.T[order].contiguous()
    zero = wide.zero.T[order].contiguous()
    current = levels.T[order].contiguous()
    for start in range(0, len(current), _COLUMN_CHUNK):
        stop = min(start + _COLUMN_CHUNK, len(current))
        changes = torch.empty_like(current[start:stop])
        for j in range(start, stop):
            grid = Grid(scale[j], zero[j])
            value = decode(current[j], grid)
            moved = nearest_levels(value + gradient[j] / curvature[j], grid, scheme)
            change = (moved - current[j]) * scale[j]
            current[j] = moved
            changes[j - start] = change
            gradient[j + 1 : stop].addr_(matrix[j, j + 1 : stop], change, alpha=-1.0)
        gradient[stop:].addmm_(matrix[start:stop, stop:].T, changes, alpha=-1.0)
    plain = torch.empty_like(current)
    plain[order] = current
    return plain.T.contiguous()
