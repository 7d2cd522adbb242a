"""What rounding one linear gave, and how it went."""

from dataclasses import dataclass

import torch

from quant.format.tensor import QuantizedTensor

AS_ASKED = "as asked"


@dataclass(frozen=True)
class Rounded:
    """`tensor` holds the stored numbers, `dequantized` (float32 [out, in]) what they are worth.

    state: "as asked" | "damping raised to X" | "fallback rtn: REASON".
    damping: share of the mean diagonal that was added; None when nothing was factored.
    weight_error: |dW| / |W|. output_error: sqrt(tr(dW H dW^T) / tr(W H W^T)), None without H.
    """

    tensor: QuantizedTensor
    dequantized: torch.Tensor
    state: str
    damping: float | None
    dead_columns: int
    weight_error: float
    output_error: float | None


def relative_errors(
    weight: torch.Tensor, dequantized: torch.Tensor, hessian: torch.Tensor | None
) -> tuple[float, float | None]:
    """(weight_error, output_error) of Rounded; 0 where the weight itself is all zeros."""
    difference = weight - dequantized
    weight_error = _ratio(difference.square().sum(), weight.square().sum())
    if hessian is None:
        return weight_error, None
    lost = quadratic_form(difference, hessian).sum()
    return weight_error, _ratio(lost, quadratic_form(weight, hessian).sum())


def quadratic_form(rows: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """r H r^T of each row: [out, in], [in, in] -> [out]."""
    return ((rows @ hessian) * rows).sum(-1)


def _ratio(part: torch.Tensor, whole: torch.Tensor) -> float:
    if float(whole) <= 0.0:
        return 0.0
    return float((part.clamp(min=0.0) / whole).sqrt())
