"""GPTQ against a dense float64 column-by-column implementation, and what must always hold."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.format.scheme import IntScheme, PerChannel, PerGroup
from quant.rounding_algorithms.factor import factor
from quant.rounding_algorithms.gptq import GptqOptions, gptq
from quant.rounding_algorithms.grid import ScaleDtype
from quant.rounding_algorithms.result import Rounded, quadratic_form
from quant.rounding_algorithms.rtn import choose_grid, round_to_nearest

Matrix = npt.NDArray[np.float64]

SCHEMES = [
    IntScheme(bits, symmetric, grain)
    for bits in (4, 8)
    for symmetric in (True, False)
    for grain in (PerGroup(32), PerChannel())
]


def problem(seed: int, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight, and second moments of inputs whose columns are correlated and of unequal size."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((columns, columns)) * np.exp(random.standard_normal(columns))
    inputs = random.standard_normal((4 * columns, columns)) @ mixing
    hessian = inputs.T @ inputs / len(inputs)
    weight = random.standard_normal((rows, columns)) / np.sqrt(columns)
    return torch.from_numpy(weight).float(), torch.from_numpy(hessian).float()


def run(
    weight: torch.Tensor,
    hessian: torch.Tensor,
    scheme: IntScheme,
    *,
    by_activation: bool = True,
    search: bool = True,
    refits: int = 0,
    dtype: ScaleDtype = "bfloat16",
) -> Rounded:
    options = GptqOptions(0.01, by_activation, search, refits)
    factored = factor(hessian, options.damping, by_activation)
    return gptq([weight], hessian, factored, scheme, dtype, options)[0]


def dense_gptq(
    weight: Matrix, hessian: Matrix, scale: Matrix, zero: Matrix, scheme: IntScheme, order: Any
) -> Matrix:
    """Codes by the plain recurrence: after each column, eliminate it from the inverse Hessian.

    scale, zero: [out, in], of each column.
    """
    remaining = weight.copy()
    damping = 0.01 * hessian.diagonal().mean()
    inverse = np.linalg.inv(hessian + damping * np.eye(len(hessian)))
    codes = np.empty_like(remaining)
    for j in order:
        steps = np.round(remaining[:, j] / scale[:, j] + zero[:, j])
        codes[:, j] = np.clip(steps, scheme.qmin, scheme.qmax)
        error = remaining[:, j] - (codes[:, j] - zero[:, j]) * scale[:, j]
        remaining -= np.outer(error / inverse[j, j], inverse[j])
        inverse = inverse - np.outer(inverse[:, j], inverse[j]) / inverse[j, j]
    return codes


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("by_activation", [True, False])
def test_equals_dense_column_by_column(scheme: IntScheme, by_activation: bool) -> None:
    """160 columns: errors are spread inside a chunk of 128 and beyond it."""
    weight, hessian = problem(1, 16, 160)
    result = run(weight, hessian, scheme, by_activation=by_activation, search=False)
    columns = choose_grid(weight, None, scheme, "bfloat16", False).columns(scheme.group_size(160))
    diagonal = hessian.double().numpy().diagonal()
    order = np.argsort(-diagonal, kind="stable") if by_activation else np.arange(160)
    wide, moments = weight.double().numpy(), hessian.double().numpy()
    scale, zero = columns.scale.double().numpy(), columns.zero.double().numpy()
    expected = dense_gptq(wide, moments, scale, zero, scheme, order)
    kept = loss_of_rows(wide - (expected - zero) * scale, moments)
    nearest = np.clip(np.round(wide / scale + zero), scheme.qmin, scheme.qmax)
    plain = loss_of_rows(wide - (nearest - zero) * scale, moments)
    assert (kept < plain).any(), "the case must exercise feedback"
    expected = np.where((kept < plain)[:, None], expected, nearest)
    np.testing.assert_array_equal(result.tensor.codes, expected.astype(np.int8))


def loss_of_rows(difference: Matrix, hessian: Matrix) -> Matrix:
    loss: Matrix = np.einsum("ri,ij,rj->r", difference, hessian, difference)
    return loss


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    scheme=st.sampled_from(SCHEMES),
    rows=st.integers(1, 6),
    groups=st.integers(1, 3),
    refits=st.integers(0, 2),
)
def test_never_worse_than_nearest_with_the_same_scales(
    seed: int, scheme: IntScheme, rows: int, groups: int, refits: int
) -> None:
    weight, hessian = problem(seed, rows, 32 * groups)
    result = run(weight, hessian, scheme, search=False, refits=refits)
    nearest = round_to_nearest(weight, scheme, "bfloat16", search=False, hessian=hessian)
    ours = quadratic_form(weight - result.dequantized, hessian)
    theirs = quadratic_form(weight - nearest.dequantized, hessian)
    assert bool((ours <= theirs).all())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scheme=st.sampled_from(SCHEMES))
def test_the_tensor_holds_what_the_result_claims(seed: int, scheme: IntScheme) -> None:
    weight, hessian = problem(seed, 5, 64)
    result = run(weight, hessian, scheme, refits=1)
    np.testing.assert_array_equal(result.tensor.dequantize(), result.dequantized.numpy())
    assert result.tensor.codes.min() >= scheme.qmin
    assert result.tensor.codes.max() <= scheme.qmax
    assert result.tensor.scale.dtype.name == "bfloat16"
    assert result.tensor.scale.shape == (5, scheme.groups(64))
    assert (result.tensor.zero_point is None) == scheme.symmetric


def test_permuting_rows_permutes_the_result() -> None:
    weight, hessian = problem(3, 12, 64)
    order = np.random.default_rng(0).permutation(12)
    scheme = IntScheme(4, True, PerGroup(32))
    straight = run(weight, hessian, scheme, refits=1).tensor.codes[order]
    np.testing.assert_array_equal(
        run(weight[order], hessian, scheme, refits=1).tensor.codes, straight
    )


def test_a_stack_equals_its_parts() -> None:
    weight, hessian = problem(4, 24, 64)
    scheme, options = IntScheme(4, True, PerGroup(32)), GptqOptions()
    factored = factor(hessian, options.damping, True)
    parts = [weight[:10], weight[10:]]
    together = gptq(parts, hessian, factored, scheme, "bfloat16", options)
    for part, result in zip(parts, together, strict=True):
        alone = gptq([part], hessian, factored, scheme, "bfloat16", options)[0]
        np.testing.assert_array_equal(result.tensor.codes, alone.tensor.codes)


def test_a_dequantized_weight_is_a_fixed_point() -> None:
    """Weights already on a grid lose nothing, whatever the Hessian."""
    weight, hessian = problem(5, 8, 64)
    scheme = IntScheme(4, True, PerGroup(32))
    once = run(weight, hessian, scheme)
    twice = run(once.dequantized, hessian, scheme)
    np.testing.assert_array_equal(twice.dequantized.numpy(), once.dequantized.numpy())
    assert twice.output_error == 0.0


def test_dead_columns_keep_the_nearest_value_and_are_counted() -> None:
    weight, hessian = problem(6, 8, 64)
    dead = [3, 40, 41]
    hessian[dead] = 0.0
    hessian[:, dead] = 0.0
    scheme = IntScheme(4, True, PerGroup(32))
    result = run(weight, hessian, scheme, search=False)
    nearest = round_to_nearest(weight, scheme, "bfloat16", search=False)
    assert result.dead_columns == len(dead)
    np.testing.assert_array_equal(result.tensor.codes[:, dead], nearest.tensor.codes[:, dead])


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_weight_of_zeros_stays_zero(scheme: IntScheme) -> None:
    _, hessian = problem(7, 1, 64)
    result = run(torch.zeros(4, 64), hessian, scheme, refits=1)
    assert not result.tensor.dequantize().any()
    assert np.isfinite(result.tensor.scale.astype(np.float32)).all()
    assert result.weight_error == 0.0
    assert result.output_error == 0.0


def test_feedback_search_and_refit_each_help() -> None:
    """What each part is for, on a problem where it should show."""
    weight, hessian = problem(8, 64, 128)
    scheme = IntScheme(4, True, PerGroup(32))
    nearest = round_to_nearest(weight, scheme, "bfloat16", search=False, hessian=hessian)
    plain = run(weight, hessian, scheme, search=False)
    searched = run(weight, hessian, scheme)
    refitted = run(weight, hessian, scheme, refits=1)
    errors = [r.output_error for r in (nearest, plain, searched, refitted)]
    assert errors == sorted(errors, key=lambda e: -(e or 0.0))
    assert len(set(errors)) == 4
