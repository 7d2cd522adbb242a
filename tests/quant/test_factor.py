"""The factored Hessian: what it must satisfy, and the ladder of dampings."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.rounding_algorithms.factor import NotPositiveDefiniteError, factor, visiting_order
from quant.workers import fixed_division


def moments(seed: int, columns: int, tokens: int) -> torch.Tensor:
    inputs = torch.randn(tokens, columns, generator=torch.Generator().manual_seed(seed))
    return inputs.T @ inputs / tokens


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), columns=st.integers(1, 24), by_activation=st.booleans())
def test_upper_is_the_cholesky_factor_of_the_inverse(
    seed: int, columns: int, by_activation: bool
) -> None:
    hessian = moments(seed, columns, 64)
    result = factor(hessian, 0.05, by_activation)
    damped = hessian.double()
    damped.diagonal().add_(0.05 * damped.diagonal().mean())
    damped = damped[result.order][:, result.order]
    upper = result.upper.double()
    torch.testing.assert_close(upper, upper.triu())
    # The factor is stored in float32, so the product of two is off by a few of its units.
    identity = torch.eye(columns, dtype=torch.float64)
    torch.testing.assert_close(upper.T @ upper @ damped, identity, atol=1e-4, rtol=0)
    assert result.damping == 0.05


def test_blocks_change_nothing_whoever_works_on_them() -> None:
    """300 columns: three blocks, the last of them short. The bound is that of float32 storage."""
    hessian = moments(1, 300, 900)
    alone = factor(hessian, 0.01, True)
    damped = hessian.double()[alone.order][:, alone.order]
    damped.diagonal().add_(0.01 * damped.diagonal().mean())
    upper = torch.linalg.cholesky(torch.linalg.inv(damped)).T
    torch.testing.assert_close(alone.upper, upper.float(), rtol=1e-6, atol=1e-7)
    before = torch.get_num_threads()
    for threads in (1, 3):
        torch.set_num_threads(threads)
        with fixed_division() as workers:
            assert torch.equal(factor(hessian, 0.01, True, workers).upper, alone.upper)
    torch.set_num_threads(before)


def test_a_block_that_is_not_positive_definite_is_noticed() -> None:
    """Its pivot is the 200th from the end: in the second block of the factorization."""
    hessian = torch.eye(300)
    hessian[100, 100] = -0.5
    assert factor(hessian, 0.4, False).damping == pytest.approx(0.8)


def test_order_is_by_falling_activation_with_ties_by_index() -> None:
    diagonal = torch.tensor([1.0, 3.0, 1.0, 3.0, 2.0])
    assert visiting_order(diagonal, True).tolist() == [1, 3, 4, 0, 2]
    assert visiting_order(diagonal, False).tolist() == [0, 1, 2, 3, 4]


def test_damping_doubles_until_the_factorization_succeeds() -> None:
    """Smallest eigenvalue -0.05 of a matrix with mean diagonal 1: 0.08 is the first rung above."""
    hessian = torch.tensor([[1.0, 1.05], [1.05, 1.0]])
    assert factor(hessian, 0.01, True).damping == pytest.approx(0.08)


def test_a_matrix_that_no_damping_mends_is_refused() -> None:
    with pytest.raises(NotPositiveDefiniteError, match="damping 1"):
        factor(torch.tensor([[1.0, 9.0], [9.0, 1.0]]), 0.01, True)


def test_nan_is_refused() -> None:
    with pytest.raises(NotPositiveDefiniteError):
        factor(torch.full((3, 3), torch.nan), 0.01, False)


def test_all_dead_columns_factor() -> None:
    upper = factor(torch.zeros(4, 4), 0.01, True).upper
    torch.testing.assert_close(upper, torch.diag(upper.diagonal()))


def test_the_hessian_is_left_as_it_was() -> None:
    hessian = moments(0, 8, 32)
    before = hessian.clone()
    factor(hessian, 0.01, True)
    assert torch.equal(hessian, before)
