"""Qronos against its paper's steps on the data themselves, and what must always hold."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.format.gguf_blocks import SCHEMES as BLOCKS
from quant.format.gguf_types import Q4_0
from quant.format.scheme import CodebookScheme, IntScheme, PerChannel, PerGroup, QuantizedScheme
from quant.rounding_algorithms.dispatch import StageMoments, round_stage
from quant.rounding_algorithms.factor import factor
from quant.rounding_algorithms.grid import nearest_levels
from quant.rounding_algorithms.qronos import FirstColumn
from quant.rounding_algorithms.result import Rounded
from quant.rounding_algorithms.rtn import choose_grid
from quant.tasks import Algorithm, LinearTask, RoundingSettings
from quant.workers import fixed_division

Matrix = npt.NDArray[np.float64]
DAMPING = 0.01


@dataclass(frozen=True)
class Layer:
    """weight [out, in]; exact, inputs: [tokens, in], of the model as it was and as it is now."""

    weight: Matrix
    exact: Matrix
    inputs: Matrix

    def moments(self) -> StageMoments:
        inputs, tokens = self.inputs, len(self.inputs)
        hessian, cross = inputs.T @ inputs / tokens, (self.exact - inputs).T @ inputs / tokens
        return StageMoments(as_torch(hessian), as_torch(cross), tokens, 1.0)

    def damped(self) -> "Layer":
        """With a row for each column on which both models agree: what damping stands for."""
        share = DAMPING * np.square(self.inputs).sum(0).mean()
        more = np.sqrt(share) * np.eye(self.inputs.shape[1])
        return Layer(
            self.weight, np.concatenate([self.exact, more]), np.concatenate([self.inputs, more])
        )

    def loss(self, rounded: Matrix) -> Matrix:
        """[out]: what |W y - Q x|^2 sums to for each row."""
        lost = self.exact @ self.weight.T - self.inputs @ rounded.T
        summed: Matrix = np.square(lost).sum(0)
        return summed


def as_torch(matrix: Matrix) -> torch.Tensor:
    return torch.from_numpy(matrix).float()


def layer(seed: int, rows: int, columns: int, error: float = 0.1) -> Layer:
    """Columns that are correlated and of unequal size, and inputs with an error of that share."""
    random = np.random.default_rng(seed)
    mixing = random.standard_normal((columns, columns)) * np.exp(random.standard_normal(columns))
    exact = random.standard_normal((4 * columns, columns)) @ mixing
    wrong = random.standard_normal((columns, columns)) / np.sqrt(columns)
    inputs = exact @ (np.eye(columns) + error * wrong)
    weight = random.standard_normal((rows, columns)) / np.sqrt(columns)
    # What the code sees is float32.
    seen = [matrix.astype(np.float32).astype(np.float64) for matrix in (weight, exact, inputs)]
    return Layer(seen[0], seen[1], seen[2])


def run(
    problem: Layer, scheme: QuantizedScheme, polish: int = 0, algorithm: Algorithm = "qronos"
) -> Rounded:
    task = LinearTask("a", scheme, algorithm)
    asked = RoundingSettings(damping=DAMPING, scales="range", polish=polish)
    with fixed_division() as workers:
        weights = {"a": as_torch(problem.weight)}
        return round_stage([task], weights, problem.moments(), asked, workers)["a"]


def stepwise(problem: Layer, scale: Matrix, zero: Matrix, scheme: IntScheme) -> Matrix:
    """Codes by the two steps of the paper, least squares each time. scale, zero: [out, in]."""
    order = np.argsort(-np.square(problem.inputs).mean(0), kind="stable")
    data, codes = problem.damped(), np.empty_like(problem.weight)
    for row, weight in enumerate(problem.weight):
        current = weight.copy()
        for step, j in enumerate(order):
            # Correct: the best value of this column while all others stand still.
            seen = problem if step == 0 else data
            others = seen.inputs @ current - seen.inputs[:, j] * current[j]
            missing, column = seen.exact @ weight - others, seen.inputs[:, j]
            value = missing @ column / (column @ column)
            code = np.round(value / scale[row, j] + zero[row, j])
            codes[row, j] = np.clip(code, scheme.qmin, scheme.qmax)
            current[j] = (codes[row, j] - zero[row, j]) * scale[row, j]
            # Diffuse: the best values of all columns to come.
            rest = order[step + 1 :]
            done = data.inputs[:, order[: step + 1]] @ current[order[: step + 1]]
            left = data.exact @ weight - done
            current[rest] = np.linalg.lstsq(data.inputs[:, rest], left, rcond=None)[0]
    return codes


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("grain", [PerGroup(16), PerChannel()], ids=str)
def test_equals_the_steps_of_the_paper(symmetric: bool, grain: PerGroup | PerChannel) -> None:
    scheme, problem = IntScheme(4, symmetric, grain), layer(1, 8, 48, error=0.6)
    result = run(problem, scheme)
    scale = result.tensor.effective_scale()[:, result.tensor.column_groups()].astype(np.float64)
    zero = np.zeros_like(scale)
    if result.tensor.zero_point is not None:
        zero = result.tensor.zero_point[:, result.tensor.column_groups()].astype(np.float64)
    expected = stepwise(problem, scale, zero, scheme)
    same = (result.tensor.codes == expected).all(1)
    # A row keeps plain rounding where that loses less; all others take these very steps.
    ours = problem.loss(result.dequantized.double().numpy())
    kept = problem.loss((expected - zero) * scale) > ours
    assert (same | kept).all()
    assert same.sum() >= 6


def test_begins_elsewhere_than_gptaq() -> None:
    """The oracle tells the two apart: codes differ."""
    scheme, problem = IntScheme(4, True, PerGroup(16)), layer(1, 8, 48, error=0.6)
    ours, theirs = run(problem, scheme), run(problem, scheme, algorithm="gptaq")
    assert (ours.tensor.codes != theirs.tensor.codes).any()
    np.testing.assert_array_equal(ours.tensor.scale, theirs.tensor.scale)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    scheme=st.sampled_from(
        [
            IntScheme(3, True, PerGroup(32)),
            IntScheme(4, False, PerChannel()),
            CodebookScheme("e4m3", PerChannel()),
            CodebookScheme("e2m1", PerGroup(32), "e8m0"),
            BLOCKS[Q4_0],
        ]
    ),
    polish=st.integers(0, 2),
)
def test_never_worse_than_nearest_with_the_same_scales(
    seed: int, scheme: QuantizedScheme, polish: int
) -> None:
    """Under |W y - Q x|^2 with damping, of which the target T is the least squares:
    with h of the damping, (H + h) T = (G + h) W, so that the objective without it is
    (T - Q) H (T - Q) - 2 h Q (W - T) and a constant, and the first part only ever falls."""
    problem = layer(seed, 4, 64)
    weight = as_torch(problem.weight)
    moments = problem.moments()
    factored = factor(moments.hessian, DAMPING, True)
    result = run(problem, scheme, polish)
    target = corrected(problem)
    grid = choose_grid(as_torch(target), factored.importance(), scheme, "bfloat16", "range")
    wide = grid.columns(scheme, 64)
    levels = nearest_levels(weight, wide, scheme)
    nearest = ((levels - wide.zero) * wide.scale).double().numpy()
    ours, tokens = result.dequantized.double().numpy(), len(problem.inputs)
    damping = DAMPING * np.square(problem.inputs).mean(0).mean() * tokens
    bent = 2 * damping * ((nearest - ours) * (problem.weight - target)).sum(1)
    # Products of float32 matrices of 64 columns.
    slack = 64 * 2**-22 * (problem.loss(np.zeros_like(ours)) + problem.loss(nearest))
    assert (problem.loss(ours) <= problem.loss(nearest) + np.abs(bent) + slack).all()


def corrected(problem: Layer) -> Matrix:
    """The least squares of the damped problem: [out, in]."""
    data = problem.damped()
    solved = np.linalg.lstsq(data.inputs, data.exact @ data.weight.T, rcond=None)[0]
    return np.ascontiguousarray(solved.T)


@given(seed=st.integers(0, 2**32 - 1), share=st.floats(0.125, 1.0))
@settings(max_examples=10, deadline=None)
def test_only_the_first_column_is_chosen_otherwise(seed: int, share: float) -> None:
    """Where all columns but the first are the least squares of what that leaves, with drift."""
    problem = layer(seed, 3, 24)
    random = np.random.default_rng(seed)
    drift = as_torch(0.1 * random.standard_normal((3, 24)))
    moments = problem.moments()
    assert moments.cross is not None
    hessian, cross = moments.hessian.double(), moments.cross.double()
    factored = factor(moments.hessian, 1e-6, True)
    weight, target = as_torch(problem.weight), as_torch(corrected(problem))
    got = FirstColumn(moments.hessian, moments.cross, factored, share).start(weight, target, drift)
    first = int(factored.order[0])
    missed = weight.double() @ cross[:, first] + drift[:, first].double()
    wanted = weight[:, first].double() + share * missed / hessian[first, first]
    np.testing.assert_allclose(got[:, first], wanted, rtol=1e-4, atol=1e-5)
    # (start - target) H is zero but for the first column: nothing is gained by moving others.
    damped = hessian + 1e-6 * hessian.diagonal().mean() * torch.eye(24)
    moved = (got - target).double()
    pull = moved @ damped
    size = (moved.abs() @ damped.abs()).max()
    rest = torch.arange(24) != first
    assert float(pull[:, rest].abs().max()) <= 1e-4 * float(size)


def test_a_dead_first_column_stays_where_it_is() -> None:
    """All inputs are zero: there is nothing to make up for."""
    zeros = torch.zeros(8, 8)
    first = FirstColumn(zeros, zeros, factor(torch.eye(8), 0.01, True), 1.0)
    weight = torch.ones(2, 8)
    assert first.start(weight, weight, None) is weight
