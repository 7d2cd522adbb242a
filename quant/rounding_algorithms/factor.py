"""The damped Hessian, factored: what GPTQ needs of it, with a ladder of dampings on failure."""

from dataclasses import dataclass

import torch

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


def factor(hessian: torch.Tensor, damping: float, by_activation: bool) -> Factor:
    """Factor `hessian` [in, in] after adding `damping` times its mean diagonal to the diagonal.

    The damping doubles on failure, up to 1. Dead columns (zero diagonal) do not count in the mean;
    alone in their row, they neither take nor give error. Raises NotPositiveDefiniteError.
    """
    order = visiting_order(hessian.diagonal(), by_activation)
    permuted = hessian.double()[order][:, order]
    alive = permuted.diagonal()[permuted.diagonal() != 0]
    mean = float(alive.mean()) if len(alive) else 1.0
    share = damping
    while True:
        damped = permuted.clone()
        damped.diagonal().add_(share * mean)
        upper = _inverse_factor(damped)
        if upper is not None:
            return Factor(upper.float(), order, share)
        if share >= _LARGEST_DAMPING:
            raise NotPositiveDefiniteError(f"not positive definite with damping {share:g}")
        share = min(2.0 * share, _LARGEST_DAMPING)


def _inverse_factor(matrix: torch.Tensor) -> torch.Tensor | None:
    """U, or None. With columns reversed, cholesky gives H = R R^T with R upper; U = inverse(R)."""
    lower, info = torch.linalg.cholesky_ex(matrix.flip(0, 1))
    if int(info) != 0 or not bool(torch.isfinite(lower).all()):
        return None
    identity = torch.eye(len(matrix), dtype=matrix.dtype)
    upper: torch.Tensor = torch.linalg.solve_triangular(lower.flip(0, 1), identity, upper=True)
    return upper
