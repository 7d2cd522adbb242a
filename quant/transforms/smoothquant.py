"""SmoothQuant: outliers of the activations are shared with the weights.

Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
Models" (ICML 2023), equation 4.
"""

import torch

ALPHAS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_SMALLEST = 1e-5


def smoothing_scale(
    most_input: torch.Tensor, most_weight: torch.Tensor, alpha: float
) -> torch.Tensor:
    """float32 [channels]: what weights are multiplied and inputs divided by.

    most_input: max |x| of each channel; most_weight: max |w| over all columns that read it.
    """
    inputs = most_input.clamp(min=_SMALLEST) ** alpha
    scale: torch.Tensor = inputs / most_weight.clamp(min=_SMALLEST) ** (1.0 - alpha)
    return scale
