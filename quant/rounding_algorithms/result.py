"""What rounding one linear gave, and how it went."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt
import torch

from quant.format.scheme import QuantizedScheme
from quant.format.tensor import QuantizedTensor
from quant.rounding_algorithms.factor import Factor
from quant.rounding_algorithms.grid import Grid, ScaleDtype, by_group, to_quantized_tensor
from quant.rounding_algorithms.levels import level_range

_COLUMN_CHUNK = 128
AS_ASKED = "as asked"
SHARED = "statistics shared with its layer"


Losses = tuple[torch.Tensor, torch.Tensor]
"""dW H dW^T and W H W^T of each row, float32 [out]."""


@dataclass(frozen=True)
class Rounded:
    """What a linear's weight became. `tensor` holds the stored numbers.

    state: "as asked" | "damping raised to X" | "fallback rtn: REASON" | "statistics shared with its
    layer: N tokens of its own", which may also follow a "; " after either of the two before.
    damping: share of the mean diagonal that was added; None when nothing was factored.
    weight_error: |dW| / |W|. output_error: sqrt(tr(dW H dW^T) / tr(W H W^T)), None without H.
    clip_ratio: share of the weights beyond the last level of their group by over half a step.
    condition: at least this is the damped Hessian's condition number; None without one.
    tokens: calibration tokens that its Hessian saw. transform: what was done to the weight before.
    """

    tensor: QuantizedTensor
    state: str
    damping: float | None
    dead_columns: int
    weight_error: float
    output_error: float | None
    clip_ratio: float = 0.0
    condition: float | None = None
    tokens: int = 0
    transform: str = ""

    @property
    def dequantized(self) -> torch.Tensor:
        """float32 [out, in]: what every reader of the file gets."""
        return torch.from_numpy(self.tensor.dequantize())


@dataclass(frozen=True)
class LayerResult:
    """A decoder layer, done. rounded: by module. changed: other tensors of it, by full name, that a
    transform changed: in the type they are stored in. added: tensors that the source does not have,
    likewise."""

    rounded: dict[str, Rounded]
    changed: dict[str, npt.NDArray[Any]] = field(default_factory=dict)
    added: dict[str, npt.NDArray[Any]] = field(default_factory=dict)


def split_rows(
    weights: Sequence[torch.Tensor],
    grid: Grid,
    levels: torch.Tensor,
    dequantized: torch.Tensor,
    scheme: QuantizedScheme,
    dtype: ScaleDtype,
    hessian: torch.Tensor | None,
    state: str,
    factored: Factor | None = None,
    losses: Losses | None = None,
) -> list[Rounded]:
    """What a stack of `weights` became, one by one: levels and dequantized are [rows, in].

    losses: of the stack's rows, where they are known already.
    """
    dead = 0 if hessian is None else int((hessian.diagonal() == 0).sum())
    if losses is None and hessian is not None:
        losses = losses_of(torch.cat(list(weights)), dequantized, hessian)
    results, row = [], 0
    for weight in weights:
        rows = slice(row, row + len(weight))
        part, worth = grid.rows(rows), dequantized[rows]
        results.append(
            Rounded(
                to_quantized_tensor(levels[rows], part, scheme, dtype),
                state,
                None if factored is None else factored.damping,
                dead,
                _ratio((weight - worth).square().sum(), weight.square().sum()),
                None if losses is None else _ratio(losses[0][rows].sum(), losses[1][rows].sum()),
                clip_ratio(weight, part, scheme),
                None if factored is None else factored.condition(),
            )
        )
        row += len(weight)
    return results


def clip_ratio(weight: torch.Tensor, grid: Grid, scheme: QuantizedScheme) -> float:
    """Share of `weight` [out, in] that lies beyond the last level by more than half a step."""
    lowest, highest = level_range(scheme)
    groups, wide = by_group(weight, grid, scheme)
    steps = groups / wide.scale + wide.zero
    beyond = torch.count_nonzero((steps < lowest - 0.5) | (steps > highest + 0.5))
    return int(beyond) / steps.numel()


def losses_of(weight: torch.Tensor, dequantized: torch.Tensor, hessian: torch.Tensor) -> Losses:
    """What each row loses, and what there is to lose."""
    return quadratic_form(weight - dequantized, hessian), quadratic_form(weight, hessian)


def quadratic_form(rows: torch.Tensor, hessian: torch.Tensor) -> torch.Tensor:
    """r H r^T of each row: [out, in], symmetric [in, in] -> [out]. What lies below the diagonal
    equals what lies above it, so that only the latter is multiplied."""
    total = rows.new_zeros(len(rows))
    for start in range(0, rows.shape[1], _COLUMN_CHUNK):
        stop = min(start + _COLUMN_CHUNK, rows.shape[1])
        part = rows[:, start:stop]
        product = part @ hessian[start:stop, start:stop]
        product.addmm_(rows[:, :start], hessian[:start, start:stop], alpha=2.0)
        total += product.mul_(part).sum(-1)
    return total


def _ratio(part: torch.Tensor, whole: torch.Tensor) -> float:
    """sqrt(part / whole); 0 where the weight itself is all zeros."""
    if float(whole) <= 0.0:
        return 0.0
    return float((part.clamp(min=0.0) / whole).sqrt())
