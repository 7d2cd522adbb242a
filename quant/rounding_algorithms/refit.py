"""Scales in closed form for levels that are already chosen, under the whole Hessian."""

import torch

from quant.format.scheme import IntScheme, PerChannel, PerGroup, QuantizedScheme
from quant.rounding_algorithms.grid import Grid, ScaleDtype, stored_scale
from quant.rounding_algorithms.kquants import refit_blocks
from quant.rounding_algorithms.scales import grouped

_RIDGE = 1e-6


def can_refit(scheme: QuantizedScheme) -> bool:
    """Whether the scales of a row are its own, and no search chose them once and for all."""
    if scheme.ggml_type is not None:
        return True
    own = isinstance(scheme.granularity, PerChannel | PerGroup)
    free = isinstance(scheme, IntScheme) or scheme.scales == "float"
    return own and free


def refit_grid(
    weight: torch.Tensor,
    levels: torch.Tensor,
    grid: Grid,
    product: torch.Tensor,
    hessian: torch.Tensor,
    scheme: QuantizedScheme,
    dtype: ScaleDtype,
) -> Grid:
    """The scales that minimise (w - q) H (w - q)^T of each row, zero points and levels unchanged.

    With c_g the steps (level - zero) of group g, a row's scales move by the solution of A x = b,
    where A[g, h] = c_g H c_h and b[g] = c_g H (w - q). A scale that would change its sign keeps its
    old value. product: float32 [out, in], (W - Q) H.
    """
    if scheme.ggml_type is not None:
        return refit_blocks(weight, levels, grid, hessian, scheme)
    steps = levels - grid.columns(scheme, weight.shape[1]).zero
    matrix = _group_products(steps, hessian, scheme)
    target = (grouped(product, scheme) * grouped(steps, scheme)).sum(-1)
    ridge = matrix.diagonal(dim1=1, dim2=2).mean(-1) * _RIDGE + torch.finfo(torch.float32).tiny
    matrix.diagonal(dim1=1, dim2=2).add_(ridge[:, None])
    scale = grid.scale + torch.linalg.solve(matrix.double(), target.double()).float()
    usable = torch.isfinite(scale) & (scale * grid.scale > 0)
    return Grid(stored_scale(torch.where(usable, scale, grid.scale), dtype), grid.zero)


def _group_products(
    steps: torch.Tensor, hessian: torch.Tensor, scheme: QuantizedScheme
) -> torch.Tensor:
    """float32 [out, groups, groups]: c_g H c_h of each row, which is c_h H c_g."""
    parts = grouped(steps, scheme)
    rows, count, size = parts.shape
    products = torch.empty(rows, count, count)
    for g in range(count):
        spread = parts[:, g] @ hessian[g * size : (g + 1) * size, g * size :]
        above = (spread.reshape(rows, -1, size) * parts[:, g:]).sum(-1)
        products[:, g, g:] = above
        products[:, g:, g] = above
    return products
