"""Targets that make up for what earlier layers lost.

A linear that is to give what it gave in the model that is not quantized, W y, from the inputs x
that it gets now, has the least squares target W E[y x^T] E[x x^T]^-1, which is
W + W E[(y - x) x^T] E[x x^T]^-1.
A linear whose output is added to a residual stream r can make up for what that lost as well: with
s the stream in the model that is not quantized, its target is to give W y + s - r.
Rounding that target under E[x x^T] minimises |W y - Q x|^2: Li et al., "GPTAQ: Efficient
Finetuning-Free Quantization for Asymmetric Calibration" (ICML 2025), equation 5, in closed form.
"""

import torch

from quant.rounding_algorithms.factor import Factor


def corrected_weight(
    weight: torch.Tensor,
    cross: torch.Tensor,
    drift: torch.Tensor | None,
    factored: Factor,
    share: float,
) -> torch.Tensor:
    """The target of weight [out, in], float32. cross: mean of (y - x) x^T [in, in]; drift: that of
    (s - r) x^T [out, in], or None; `share` of the difference is made up for. The damped
    Hessian, as factored, is what is inverted."""
    missed = weight @ cross if drift is None else weight @ cross + drift
    moved = missed[:, factored.order].double()
    upper = factored.upper.double()
    shift = torch.empty_like(moved)
    shift[:, factored.order] = (moved @ upper.T) @ upper
    return weight + share * shift.float()
