"""Inputs of linears, rounded as they will be when the model runs."""

import torch

from quant.format.codebooks import LARGEST
from quant.format.scheme import ActivationScheme, CodebookScheme, PerGroup, PerTensor
from quant.rounding_algorithms.levels import snap

_INT8_LARGEST = 127.0


def round_inputs(inputs: torch.Tensor, scheme: ActivationScheme) -> torch.Tensor:
    """float32 `inputs` [..., columns] to the nearest point of a symmetric grid, and back.

    The largest magnitude of each token, group or tensor maps to the largest level. Scales that
    are stored beforehand are taken from `inputs` as well: what they will be is not known here.
    """
    grouped = inputs
    if isinstance(scheme.granularity, PerGroup):
        grouped = inputs.reshape(*inputs.shape[:-1], -1, scheme.granularity.size)
    size = grouped.abs()
    if isinstance(scheme.granularity, PerTensor):
        most = size.amax().expand(*grouped.shape[:-1], 1)
    else:
        most = size.amax(-1, keepdim=True)
    if scheme.numbers == "int8":
        scale = most / _INT8_LARGEST
        levels = torch.round(grouped / torch.where(scale > 0, scale, 1.0))
    else:
        scale = most / LARGEST[scheme.numbers]
        steps = grouped / torch.where(scale > 0, scale, 1.0)
        levels = snap(steps, CodebookScheme(scheme.numbers, PerTensor()))
    return (levels * scale).reshape(inputs.shape)
