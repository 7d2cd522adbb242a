"""Qronos: the column that is rounded first makes up for what earlier layers lost all by itself.

Zhang et al., "Qronos: Correcting the Past by Shaping the Future in Post-Training Quantization"
(2025), algorithm 1: column by column, first choose the value that corrects the error of the whole
output best while later columns stand still, and round it; then choose later columns anew, by least
squares. From the second column on these already stand at their least squares, so that the first
step is plain rounding and the second GPTQ's feedback: all that is left of the corrections is the
first column's, and where that puts the others. GPTAQ in closed form (`correction.py`) takes
the least squares of all columns at once instead, and rounds the first to that.
"""

from dataclasses import dataclass

import torch

from quant.rounding_algorithms.factor import Factor


@dataclass(frozen=True)
class FirstColumn:
    """Of all linears that share an input; arguments as in `corrected_weight`."""

    hessian: torch.Tensor
    cross: torch.Tensor
    factored: Factor
    share: float

    def start(
        self, weight: torch.Tensor, target: torch.Tensor, drift: torch.Tensor | None
    ) -> torch.Tensor:
        """What GPTQ is to begin at, so that it takes Qronos' steps: float32 [out, in].

        target: the corrected weight, the least squares of all columns at once. With the first
        column moved by d from there, the others' least squares move by d U_1j / U_11, U being the
        factor of the inverse Hessian, and feedback of the rounding error follows the same line.
        """
        order, upper = self.factored.order, self.factored.upper
        first = int(order[0])
        square = self.hessian[first, first]
        if float(square) == 0.0:
            return target
        missed = weight @ self.cross[:, first]
        if drift is not None:
            missed = missed + drift[:, first]
        moved = weight[:, first] + self.share * missed / square - target[:, first]
        direction = torch.empty_like(upper[0])
        direction[order] = upper[0] / upper[0, 0]
        return torch.addcmul(target, moved[:, None], direction)
