"""GPTQ against a dense float64 column-by-column implementation, and what must always hold."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.format.scheme import IntScheme, PerChannel, PerGroup
from quant.rounding_algorithms import gptq as gptq_module
from quant.rounding_algorithms.factor import factor
from quant.rounding_algorithms.gptq import GptqOptions, gptq
from quant.rounding_algorithms.grid import ScaleDtype, decode, nearest_levels
from quant.rounding_algorithms.result import Rounded, quadratic_form
from quant.rounding_algorithms.rtn import choose_grid, round_to_nearest
from quant.rounding_algorithms.sweep import sweep_levels
from quant.rounding_algorithms.walk import Walk
from quant.tasks import ScaleChoice

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
    scales: ScaleChoice = "signed",
    polish: int = 0,
    dtype: ScaleDtype = "bfloat16",
) -> Rounded:
    options = GptqOptions(0.01, by_activation, scales, polish)
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
    result = run(weight, hessian, scheme, by_activation=by_activation, scales="range")
    columns = choose_grid(weight, None, scheme, "bfloat16", "range").columns(scheme, 160)
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
    polish=st.integers(0, 2),
)
def test_never_worse_than_nearest_with_the_same_scales(
    seed: int, scheme: IntScheme, rows: int, groups: int, polish: int
) -> None:
    weight, hessian = problem(seed, rows, 32 * groups)
    result = run(weight, hessian, scheme, scales="range", polish=polish)
    (nearest,) = round_to_nearest([weight], scheme, "bfloat16", scales="range", hessian=hessian)
    ours = quadratic_form(weight - result.dequantized, hessian)
    theirs = quadratic_form(weight - nearest.dequantized, hessian)
    assert bool((ours <= theirs).all())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scheme=st.sampled_from(SCHEMES))
def test_the_tensor_holds_what_the_result_claims(seed: int, scheme: IntScheme) -> None:
    weight, hessian = problem(seed, 5, 64)
    result = run(weight, hessian, scheme, polish=1)
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
    straight = run(weight, hessian, scheme, polish=1).tensor.codes[order]
    np.testing.assert_array_equal(
        run(weight[order], hessian, scheme, polish=1).tensor.codes, straight
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


@pytest.mark.parametrize(("rows", "sizes"), [(1, [1]), (576, [288] * 2), (1025, [257] * 3 + [254])])
def test_two_threads_end_together(rows: int, sizes: list[int]) -> None:
    parts = gptq_module._row_chunks(rows)
    assert [part.stop - part.start for part in parts] == sizes
    assert [part.start for part in parts] == [0, *(part.stop for part in parts[:-1])]
    assert parts[-1].stop == rows


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
    result = run(weight, hessian, scheme, scales="range")
    (nearest,) = round_to_nearest([weight], scheme, "bfloat16", scales="range")
    assert result.dead_columns == len(dead)
    np.testing.assert_array_equal(result.tensor.codes[:, dead], nearest.tensor.codes[:, dead])


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_weight_of_zeros_stays_zero(scheme: IntScheme) -> None:
    _, hessian = problem(7, 1, 64)
    result = run(torch.zeros(4, 64), hessian, scheme, polish=1)
    assert not result.tensor.dequantize().any()
    assert np.isfinite(result.tensor.scale.astype(np.float32)).all()
    assert result.weight_error == 0.0
    assert result.output_error == 0.0


def test_every_part_helps() -> None:
    """What each part is for, on a problem where it should show."""
    weight, hessian = problem(8, 64, 128)
    scheme = IntScheme(4, True, PerGroup(32))
    results = [
        *round_to_nearest([weight], scheme, "bfloat16", scales="range", hessian=hessian),
        run(weight, hessian, scheme, scales="range"),
        run(weight, hessian, scheme, scales="search"),
        run(weight, hessian, scheme, scales="signed"),
        run(weight, hessian, scheme, scales="signed", polish=1),
        run(weight, hessian, scheme, scales="signed", polish=4),
    ]
    errors = [result.output_error or 0.0 for result in results]
    assert errors == sorted(errors, reverse=True)
    assert len(set(errors)) == len(errors)


def test_a_sweep_equals_dense_coordinate_descent() -> None:
    """160 columns cross a chunk. The oracle tries every code of every column in turn."""
    weight, hessian = problem(9, 6, 160)
    scheme = IntScheme(4, False, PerGroup(32))
    grid = choose_grid(weight, None, scheme, "bfloat16", "search")
    wide = grid.columns(scheme, weight.shape[1])
    start = nearest_levels(weight, wide, scheme)
    order = torch.from_numpy(np.random.default_rng(0).permutation(160))
    product = (weight - decode(start, wide)) @ hessian
    visited = hessian[order][:, order]
    ours, after = sweep_levels(start, product, visited, Walk.over(grid, scheme, order))
    codes, moments = start.double().numpy(), hessian.double().numpy()
    scale, zero = wide.scale.double().numpy(), wide.zero.double().numpy()
    for j in order.tolist():
        losses = []
        for code in range(scheme.qmin, scheme.qmax + 1):
            codes[:, j] = code
            difference = weight.double().numpy() - (codes - zero) * scale
            losses.append(loss_of_rows(difference, moments))
        codes[:, j] = np.argmin(losses, axis=0) + scheme.qmin
    np.testing.assert_array_equal(ours.numpy(), codes)
    assert (codes != start.numpy()).any()
    difference = weight.double().numpy() - (codes - zero) * scale
    # Each product comes of one float32 sum over the columns for the start, and one for all changes.
    sizes = (np.abs(difference) + np.abs(weight.numpy() - (start.numpy() - zero) * scale)).max()
    bound = 2 * 160 * 2.0**-24 * 2 * sizes * np.abs(moments).sum(0)
    assert (np.abs(after.double().numpy() - difference @ moments) <= bound).all()
