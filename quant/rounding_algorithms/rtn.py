"""Round to nearest, with searched scales."""

from collections.abc import Sequence

import torch

from quant.format.scheme import CodebookScheme, PerBlock, PerTensor, QuantizedScheme
from quant.rounding_algorithms.codebook_grids import codebook_grid
from quant.rounding_algorithms.grid import Grid, ScaleDtype, decode, nearest_levels
from quant.rounding_algorithms.kquants import search_block_grid
from quant.rounding_algorithms.result import AS_ASKED, Rounded, split_rows
from quant.rounding_algorithms.scales import full_range_grid, one_grid, search_grid
from quant.tasks import ScaleChoice


def choose_grid(
    weight: torch.Tensor,
    importance: torch.Tensor | None,
    scheme: QuantizedScheme,
    dtype: ScaleDtype,
    scales: ScaleChoice,
    lowest_zero: int = 0,
) -> Grid:
    """The grid [out, groups] that `scales` asks for; `importance` [in], None: all alike.

    lowest_zero: smallest zero point of an asymmetric scheme, counted from qmin.
    """
    if importance is None:
        importance = torch.ones(weight.shape[1])
    if scheme.ggml_type is not None:
        return search_block_grid(weight, importance, scheme)
    if isinstance(scheme, CodebookScheme):
        return codebook_grid(weight, importance, scheme, search=scales != "range")
    if isinstance(scheme.granularity, PerTensor):
        return one_grid(weight, scheme, dtype)
    if scales == "range":
        return full_range_grid(weight, scheme, dtype, lowest_zero=lowest_zero)
    signed = scales == "signed"
    return search_grid(weight, importance, scheme, dtype, signed, lowest_zero)


def rows_share_scales(scheme: QuantizedScheme) -> bool:
    """Whether the grid of a row depends on other rows, so that it is chosen for all at once."""
    nvfp4 = isinstance(scheme, CodebookScheme) and scheme.scales == "e4m3"
    return nvfp4 or isinstance(scheme.granularity, PerTensor | PerBlock)


def round_to_nearest(
    weights: Sequence[torch.Tensor],
    scheme: QuantizedScheme,
    dtype: ScaleDtype,
    *,
    scales: ScaleChoice = "signed",
    lowest_zero: int = 0,
    hessian: torch.Tensor | None = None,
    state: str = AS_ASKED,
) -> list[Rounded]:
    """Each weight to the nearest point of its group's grid. weights: float32 [out, in] each, of
    linears that read the same input and that servers fuse: what a tensor shares, they share."""
    stack = torch.cat(list(weights))
    importance = None if hessian is None else hessian.diagonal()
    grid = choose_grid(stack, importance, scheme, dtype, scales, lowest_zero)
    wide = grid.columns(scheme, stack.shape[1])
    levels = nearest_levels(stack, wide, scheme)
    dequantized = decode(levels, wide)
    return split_rows(weights, grid, levels, dequantized, scheme, dtype, hessian, state)
