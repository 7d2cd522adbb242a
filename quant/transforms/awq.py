"""AWQ: channels that carry much are scaled up before rounding, so that they lose less.

Lin et al., "AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration"
(MLSys 2024), 3.2.
"""

from collections.abc import Sequence

import torch

from quant.transforms.settings import AwqSettings

_SMALLEST = 1e-4


def awq_candidates(
    mean_abs: torch.Tensor, weight_mean: torch.Tensor, settings: AwqSettings
) -> dict[str, torch.Tensor]:
    """Scales to try, float32 [channels], by a name that tells the ratio.

    mean_abs: mean |x| of each channel. weight_mean: from `relative_magnitude`. With ratio r a scale
    is mean_abs**r, for "duo" divided by weight_mean**(1 - r); then the largest and the smallest are
    brought to opposite sides of 1. No scaling at all is not among them.
    """
    candidates = {}
    for step in range(settings.ratios):
        ratio = step / settings.ratios
        if settings.formula != "duo" and step > 0:
            candidates[f"awq {ratio:g}"] = _centred(mean_abs**ratio)
        if settings.formula != "plain":
            scale = mean_abs**ratio / (weight_mean ** (1.0 - ratio) + _SMALLEST)
            candidates[f"awq duo {ratio:g}"] = _centred(scale)
    return candidates


def relative_magnitude(weights: Sequence[torch.Tensor], group_sizes: Sequence[int]) -> torch.Tensor:
    """float32 [in]: how large a column's weights are within their groups, mean over all rows.

    weights: [out, in] each, of linears that read the same input.
    """
    parts = []
    for weight, size in zip(weights, group_sizes, strict=True):
        groups = weight.abs().reshape(len(weight), -1, size)
        most = groups.amax(-1, keepdim=True)
        parts.append((groups / torch.where(most > 0, most, 1.0)).reshape(len(weight), -1))
    return torch.cat(parts).mean(0)


def _centred(scale: torch.Tensor) -> torch.Tensor:
    scale = scale.clamp(min=_SMALLEST)
    scale = scale / (scale.max() * scale.min()).sqrt()
    return torch.where(torch.isfinite(scale) & (scale > 0), scale, 1.0)
