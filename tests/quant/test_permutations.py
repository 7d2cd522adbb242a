"""Permuted rows give the permuted result, and so do columns permuted together with the Hessian.

Sums in float32 depend on their order in the last bits, and a number between two levels may go to
either for it. So equality bit for bit is asked where sums are the same ones:
- rows: a matrix product sums alike in all rows that fill its tiles, which 32 rows do; the rows left
  over by other counts may be summed otherwise. To round to nearest needs no product.
- columns, inside a group: where scales come of the largest and the least number alone ("range");
  whole groups: where they are searched, too, for then each group is summed on its own. A polish
  sums over all columns. GPTQ's own sums go in visiting order, which is one and the same. GPTAQ's
  targets sum over columns: moments and weights are whole numbers here, of which no sum is rounded.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.format.gguf_blocks import SCHEMES as GGML
from quant.format.gguf_types import IQ4_XS, Q4_1, Q4_K, Q6_K
from quant.format.scheme import IntScheme, PerChannel, PerGroup, QuantizedScheme
from quant.format.tensor import QuantizedTensor
from quant.rounding_algorithms.dispatch import StageMoments, round_stage
from quant.tasks import Algorithm, LinearTask, RoundingSettings, ScaleChoice
from quant.workers import fixed_division
from tests.quant.format.random_weights import SCHEMES

GROUPED: dict[str, QuantizedScheme] = {
    "int4": IntScheme(4, True, PerGroup(32)),
    "int4-asym": IntScheme(4, False, PerGroup(32)),
    "int3": IntScheme(3, True, PerGroup(32)),
    "int8-channel": IntScheme(8, True, PerChannel()),
    "fp8-channel": SCHEMES["fp8-weights"],
    "nvfp4": SCHEMES["nvfp4-weights"],
    "mxfp4": SCHEMES["mxfp4-weights"],
}
KINDS = (Q4_1, Q4_K, Q6_K, IQ4_XS)
BLOCKS: dict[str, QuantizedScheme] = {str(kind): GGML[kind] for kind in KINDS}
SHARED: dict[str, QuantizedScheme] = {
    "int8-tensor": SCHEMES["w8a8-tensor"],
    "fp8-tensor": SCHEMES["fp8-static"],
}
ALL = GROUPED | BLOCKS | SHARED
ALGORITHMS: tuple[Algorithm, ...] = ("rtn", "gptq", "gptaq")
CHOICES: tuple[ScaleChoice, ...] = ("range", "search", "signed")


def width(name: str) -> int:
    """Columns: some groups, two blocks of K-quants; more than are visited in one go, 128."""
    return 512 if ALL[name] in BLOCKS.values() and not name.startswith("Q4_1") else 192


@dataclass(frozen=True)
class Problem:
    """A weight [out, in], and the moments of inputs whose columns are correlated, and all of
    another size; what they miss of the model that is not quantized is in whole numbers."""

    weight: torch.Tensor
    moments: StageMoments

    @staticmethod
    def random(seed: int, rows: int, columns: int) -> "Problem":
        random = np.random.default_rng(seed)
        sizes = np.exp(random.permutation(np.linspace(-1.5, 1.5, columns)))
        mixing = np.eye(columns) + 0.1 * random.standard_normal((columns, columns))
        inputs = random.standard_normal((columns + 64, columns)) @ mixing * sizes
        hessian = torch.from_numpy(inputs.T @ inputs / len(inputs)).float()
        if len(set(hessian.diagonal().tolist())) < columns:  # ties are visited in any order
            return Problem.random(seed + 1_000_003, rows, columns)
        whole = (
            torch.from_numpy(random.integers(-most, most + 1, (height, columns))).float()
            for most, height in ((500, rows), (3, columns), (30, rows))
        )
        weight, cross, drift = whole
        return Problem(weight, StageMoments(hessian, cross / 64, 1, 1.0, drift))

    def with_rows(self, order: torch.Tensor) -> "Problem":
        assert self.moments.drift is not None
        moments = replace(self.moments, drift=self.moments.drift[order])
        return Problem(self.weight[order], moments)

    def with_columns(self, order: torch.Tensor) -> "Problem":
        moments = self.moments
        assert moments.cross is not None and moments.drift is not None
        hessian, cross = (m[order][:, order] for m in (moments.hessian, moments.cross))
        moved = replace(moments, hessian=hessian, cross=cross, drift=moments.drift[:, order])
        return Problem(self.weight[:, order], moved)


def round_one(
    problem: Problem, scheme: QuantizedScheme, algorithm: Algorithm, settings: RoundingSettings
) -> QuantizedTensor:
    task = LinearTask("a", scheme, algorithm)
    with fixed_division() as workers:
        done = round_stage([task], {"a": problem.weight}, problem.moments, settings, workers)
    assert done["a"].state == "as asked"
    return done["a"].tensor


def assert_same(one: QuantizedTensor, other: QuantizedTensor) -> None:
    assert one.global_scale == other.global_scale
    for name in ("codes", "scale", "zero_point", "minimum"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", ALL)
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 40), scales=st.sampled_from(CHOICES))
def test_rows(name: str, algorithm: Algorithm, seed: int, rows: int, scales: ScaleChoice) -> None:
    rows = rows if algorithm == "rtn" else 32
    problem = Problem.random(seed, rows, width(name))
    order = np.random.default_rng(seed).permutation(rows)
    asked = RoundingSettings(scales=scales, polish=1)
    straight = round_one(problem, ALL[name], algorithm, asked)
    moved = problem.with_rows(torch.from_numpy(order))
    assert_same(round_one(moved, ALL[name], algorithm, asked), straight.take_rows(order))


def columns_of(groups: np.ndarray, size: int, inside: np.random.Generator | None) -> np.ndarray:
    """int64 [in]: groups in another order; with `inside`, their columns as well."""
    within = [np.arange(size) if inside is None else inside.permutation(size) for _ in groups]
    return np.concatenate([g * size + w for g, w in zip(groups, within, strict=True)])


def assert_moved(
    name: str, algorithm: Algorithm, seed: int, scales: ScaleChoice, unit: int, inside: bool
) -> None:
    """Units of `unit` columns, which hold whole groups, move; inside them columns, if asked."""
    scheme, random, columns = ALL[name], np.random.default_rng(seed), width(name)
    problem, asked = Problem.random(seed, 8, columns), RoundingSettings(scales=scales, polish=0)
    groups = random.permutation(columns // unit)
    order = columns_of(groups, unit, random if inside else None)
    straight = round_one(problem, scheme, algorithm, asked)
    moved = round_one(problem.with_columns(torch.from_numpy(order)), scheme, algorithm, asked)
    group = scheme.group_size(columns)
    parts: dict[str, Any] = {"codes": straight.codes[:, order]}
    for part in ("scale", "zero_point", "minimum"):
        value = getattr(straight, part)
        if value is not None and value.shape[1] > 1:
            value = value[:, order[::group] // group]
        parts[part] = value
    assert_same(moved, replace(straight, **parts))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", GROUPED | SHARED)
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_columns_inside_groups(name: str, algorithm: Algorithm, seed: int) -> None:
    group = ALL[name].group_size(width(name))
    assert_moved(name, algorithm, seed, "range", group, inside=True)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("name", GROUPED | BLOCKS)
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scales=st.sampled_from(CHOICES))
def test_whole_groups(name: str, algorithm: Algorithm, seed: int, scales: ScaleChoice) -> None:
    kind = next((kind for kind in KINDS if str(kind) == name), None)
    unit = ALL[name].group_size(width(name)) if kind is None else kind.block
    assert_moved(name, algorithm, seed, scales, unit, inside=False)


def test_columns_matter_where_they_are_visited_as_they_lie() -> None:
    """So that the properties above say something of the order of visits."""
    problem, order = Problem.random(0, 8, 192), torch.arange(191, -1, -1)
    asked = RoundingSettings(scales="range", polish=0, by_activation=False)
    scheme = GROUPED["int4"]
    straight = round_one(problem, scheme, "gptq", asked)
    moved = round_one(problem.with_columns(order), scheme, "gptq", asked)
    assert (moved.codes != straight.codes[:, ::-1]).any()
