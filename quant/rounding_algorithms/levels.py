"""Levels: the numbers that codes stand for before they are scaled, and rounding to the nearest."""

import numpy as np
import numpy.typing as npt
import torch

from quant.format.codebooks import LARGEST, codebook_values
from quant.format.scheme import Codebook, CodebookScheme, IntScheme, QuantizedScheme


def level_range(scheme: QuantizedScheme) -> tuple[float, float]:
    """(lowest, highest) level of the scheme. ggml's types with a minimum count from 0."""
    if isinstance(scheme, CodebookScheme):
        values = codebook_values(scheme.codebook)
        return float(np.nanmin(values)), float(np.nanmax(values))
    if scheme.ggml_type is not None and not scheme.symmetric:
        return 0.0, float((1 << scheme.num_bits) - 1)
    return float(scheme.qmin), float(scheme.qmax)


def snap(steps: torch.Tensor, scheme: QuantizedScheme) -> torch.Tensor:
    """The level nearest to each of `steps` (float32, any shape), ties to even, saturating."""
    if isinstance(scheme, IntScheme):
        return torch.round(steps).clamp_(*level_range(scheme))
    match scheme.codebook:
        case "e4m3":
            largest = LARGEST["e4m3"]
            return steps.clamp(-largest, largest).to(torch.float8_e4m3fn).float()
        case "e2m1":
            return _snap_e2m1(steps)
        case "iq4_nl":
            return _snap_to_table(steps, scheme.codebook)


def level_codes(levels: torch.Tensor, scheme: QuantizedScheme) -> npt.NDArray[np.int8]:
    """int8 codes as `QuantizedTensor` holds them, of float32 levels that `snap` gave."""
    if isinstance(scheme, IntScheme):
        return levels.numpy().astype(np.int8)
    if scheme.codebook == "e4m3":
        return levels.to(torch.float8_e4m3fn).view(torch.int8).numpy()
    if scheme.codebook == "e2m1":
        # Half steps up to 2, whole ones up to 4, one of two beyond: the magnitude's index.
        size = levels.abs()
        index = torch.where(size <= 2, 2 * size, torch.where(size <= 4, size + 2, size / 2 + 4))
        return (index + 8 * torch.signbit(levels)).numpy().astype(np.int8)
    table, order = _sorted_table(scheme.codebook)
    index = torch.searchsorted(table, levels.contiguous())
    return order[index].numpy().astype(np.int8)


def _snap_e2m1(steps: torch.Tensor) -> torch.Tensor:
    size = steps.abs().clamp(max=LARGEST["e2m1"])
    step = 0.5 + 0.5 * (size >= 2) + (size >= 4)
    return torch.copysign(torch.round(size / step) * step, steps)


def _sorted_table(codebook: Codebook) -> tuple[torch.Tensor, torch.Tensor]:
    table, order = torch.from_numpy(codebook_values(codebook).copy()).sort()
    return table, order


def _snap_to_table(steps: torch.Tensor, codebook: Codebook) -> torch.Tensor:
    """Ties go to the lower level, as in ggml's search."""
    table, _ = _sorted_table(codebook)
    middle = (table[1:] + table[:-1]) / 2
    return table[torch.bucketize(steps.contiguous(), middle)]
