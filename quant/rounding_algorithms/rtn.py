"""Round to nearest, with searched scales."""

import torch

from quant.format.scheme import IntScheme
from quant.rounding_algorithms.grid import (
    Grid,
    ScaleDtype,
    decode,
    nearest_codes,
    to_quantized_tensor,
)
from quant.rounding_algorithms.result import AS_ASKED, Rounded, relative_errors
from quant.rounding_algorithms.scales import full_range_grid, search_grid
from quant.tasks import ScaleChoice


def choose_grid(
    weight: torch.Tensor,
    importance: torch.Tensor | None,
    scheme: IntScheme,
    dtype: ScaleDtype,
    scales: ScaleChoice,
    lowest_zero: int = 0,
) -> Grid:
    """The grid [out, groups] that `scales` asks for; `importance` [in], None: all alike.

    lowest_zero: smallest zero point of an asymmetric scheme, counted from qmin.
    """
    if scales == "range":
        return full_range_grid(weight, scheme, dtype, lowest_zero=lowest_zero)
    if importance is None:
        importance = torch.ones(weight.shape[1])
    signed = scales == "signed"
    return search_grid(weight, importance, scheme, dtype, signed, lowest_zero)


def round_to_nearest(
    weight: torch.Tensor,
    scheme: IntScheme,
    dtype: ScaleDtype,
    *,
    scales: ScaleChoice = "signed",
    lowest_zero: int = 0,
    hessian: torch.Tensor | None = None,
    state: str = AS_ASKED,
) -> Rounded:
    """Each weight to the nearest point of its group's grid. weight: float32 [out, in]."""
    importance = None if hessian is None else hessian.diagonal()
    grid = choose_grid(weight, importance, scheme, dtype, scales, lowest_zero)
    wide = grid.columns(scheme.group_size(weight.shape[1]))
    codes = nearest_codes(weight, wide, scheme)
    dequantized = decode(codes, wide)
    weight_error, output_error = relative_errors(weight, dequantized, hessian)
    tensor = to_quantized_tensor(codes, grid, scheme, dtype)
    return Rounded(tensor, dequantized, state, None, 0, weight_error, output_error)
