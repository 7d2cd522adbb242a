"""The damped Hessian, factored: what GPTQ needs of it, with a ladder of dampings on failure."""

from dataclasses import dataclass

import torch

from quant.rounding_algorithms.cholesky import inverse_of_factor
from quant.rounding_algorithms.walk import permuted
from quant.workers import Workers

_LARGEST_DAMPING = 1.0


class NotPositiveDefiniteError(Exception):
    """No damping on the ladder made the Hessian positive definite; the message says how far."""


@dataclass(frozen=True)
class Factor:
    """upper: float32 [in, in], upper triangular U with inverse(H) = U^T U, in visiting order.

    order: int64 [in], the column visited at each step. damping: the share that it took.
    """

    upper: torch.Tensor
    order: torch.Tensor
    damping: float

    def importance(self) -> torch.Tensor:
        """float32 [in], by column: what a squared rounding error there costs in the end.

        GPTQ's loss is the sum of (error_j / U_jj)**2 over its steps, so this, not the mean square
        input, is what scales should be chosen by.
        """
        weights = torch.empty_like(self.upper.diagonal())
        weights[self.order] = self.upper.diagonal().reciprocal().square()
        return weights

    def condition(self) -> float:
        """A lower bound of the damped Hessian's condition number: the squared ratio of the largest
        to the smallest diagonal element of its factor."""
        diagonal = self.upper.diagonal().double()
        return float((diagonal.max() / diagonal.min()).square())


def visiting_order(diagonal: torch.Tensor, by_activation: bool) -> torch.Tensor:
    """Columns by falling mean square input, ties by index; or as they lie."""
    if by_activation:
        return torch.argsort(diagonal, descending=True, stable=True)
    return torch.arange(len(diagonal))


def factor(
    hessian: torch.Tensor, damping: float, by_activation: bool, workers: Workers | None = None
) -> Factor:
    """Factor `hessian` [in, in] after adding `damping` times its mean diagonal to the diagonal.

    The damping doubles on failure, up to 1. Dead columns (zero diagonal) do not count in the mean;
    alone in their row, they neither take nor give error. Raises NotPositiveDefiniteError.
    """
    order = visiting_order(hessian.diagonal(), by_activation)
    backwards = permuted(hessian, order.flip(0)).double()
    alive = backwards.diagonal()[backwards.diagonal() != 0]
    mean = float(alive.mean()) if len(alive) else 1.0
    share = damping
    while True:
        damped = backwards.clone()
        damped.diagonal().add_(share * mean)
        upper = _inverse_factor(damped, workers)
        if upper is not None:
            return Factor(upper, order, share)
        if share >= _LARGEST_DAMPING:
            raise NotPositiveDefiniteError(f"not positive definite with damping {share:g}")
        share = min(2.0 * share, _LARGEST_DAMPING)


def _inverse_factor(backwards: torch.Tensor, workers: Workers | None) -> torch.Tensor | None:
    """U, float32, or None. Of H with rows and columns backwards Cholesky gives L L^T, which is
    H = R R^T with R upper, its elements backwards; U = inverse(R). Overwrites its argument."""
    inverse = inverse_of_factor(backwards, workers)
    return None if inverse is None else inverse.float().flip(0, 1)
