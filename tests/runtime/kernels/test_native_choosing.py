"""Draws from rows of logits, against the definition in plain Python floats, and NumPy's."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from runtime.engine.candidates import Float32, draw_token
from runtime.engine.request import SamplingParams
from runtime.kernels.cpu._native import Plan
from tests.runtime.engine.test_candidates import distribution
from tests.runtime.kernels.harness import ISAS, POOLS, random_floats

LONG = 5000
"""Several blocks of sums, and a tail."""


def draw(isa: str, row: Float32, params: SamplingParams, uniforms: list[float]) -> list[int]:
    """The row's token at each of the random numbers, by several threads."""
    options = [
        (params.temperature, params.top_k, params.top_p, params.min_p, each) for each in uniforms
    ]
    return Plan(POOLS[2], isa).draw(row[None], [0] * len(uniforms), options)


VALUES = st.floats(-20, 20, width=32) | st.sampled_from([-1.0, 0.0, 2.5, float("-inf")])


@settings(max_examples=40)
@given(
    values=st.lists(VALUES, min_size=1, max_size=24),
    gap=st.sampled_from([0, 7, 300]),
    temperature=st.floats(0.05, 5),
    top_k=st.integers(0, 8),
    top_p=st.floats(0.05, 1) | st.just(1.0),
    min_p=st.just(0.0) | st.floats(0.001, 1),
)
def test_draws_invert_the_distribution_by_definition(
    values: list[float], gap: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    """Over a grid of N uniforms, an interval of width p holds N * p points give or take one; 32-bit
    weights move each of its two ends by less than 1e-5 of the whole. Where values lie apart, what
    is between them cannot be drawn."""
    assume(max(values) > float("-inf"))
    assume(all(a == b or abs(a - b) > 1e-4 for a in values for b in values))
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    row = np.full(len(values) * (gap + 1), -np.inf, np.float32)
    row[:: gap + 1] = values
    expected = distribution([float(v) for v in row[:: gap + 1]], params)
    points = 200
    uniforms = [(j + 0.5) / points for j in range(points)]
    for isa in ISAS:
        drawn = draw(isa, row, params, uniforms)
        for index in range(len(values)):
            ideal = expected.get(index, 0.0) * points
            count = drawn.count(index * (gap + 1))
            assert abs(count - ideal) <= 1 + 2e-5 * points
            assert count == 0 or index in expected
        assert all(token % (gap + 1) == 0 for token in drawn)


OPTIONS = [
    {},
    {"top_k": 1},
    {"top_k": 40},
    {"top_k": 4000},
    {"top_p": 0.5},
    {"top_p": 0.99},
    {"min_p": 0.02},
    {"top_k": 300, "top_p": 0.9, "min_p": 0.001},
]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("scale", [0.3, 3.0])
def test_long_rows_are_drawn_as_numpy_draws_them(
    isa: str, options: dict[str, float], scale: float
) -> None:
    """Flat ones, of which much stays, and steep ones. Both invert the same running sum; where a
    random number falls next to a step of it, they may differ by one place of what stays."""
    row = random_floats((LONG,), seed=5) * np.float32(scale)
    row[100:160] = row[99]  # equal numbers at the border of what stays
    params = SamplingParams(temperature=0.8, **options)  # type: ignore[arg-type]
    uniforms = [(j + 0.5) / 64 for j in range(64)]
    found = draw(isa, row, params, uniforms)
    expected = [draw_token(row, params, each) for each in uniforms]
    different = [i for i in range(64) if found[i] != expected[i]]
    assert len(different) <= 2
    for i in different:
        near = {draw_token(row, params, uniforms[i] + step) for step in (-2e-5, 2e-5)}
        assert found[i] in near


@pytest.mark.parametrize("isa", ISAS)
def test_a_tie_at_the_border_is_cut_at_the_first_places(isa: str) -> None:
    for count in (5, 90, LONG):
        row = np.zeros(count, np.float32)
        row[count // 2] = 1.0
        uniforms = [(j + 0.5) / 100 for j in range(100)]
        drawn = set(draw(isa, row, SamplingParams(temperature=1.0, top_k=3), uniforms))
        assert drawn == {0, 1, count // 2}


@pytest.mark.parametrize("isa", ISAS)
def test_the_ends_of_the_random_numbers(isa: str) -> None:
    row = np.full(LONG, -np.inf, np.float32)
    row[[17, LONG - 2]] = 1.0
    params = SamplingParams(temperature=1.0)
    assert draw(isa, row, params, [0.0, 0.4999, 0.5001, 1 - 2**-53]) == [17, 17, *[LONG - 2] * 2]
    cold = SamplingParams(temperature=1e-40)
    row[17] = 0.9999
    assert draw(isa, row, cold, [0.0, 0.5, 1 - 2**-53]) == [LONG - 2] * 3


@pytest.mark.parametrize("isa", ISAS)
def test_huge_and_masked_logits(isa: str) -> None:
    """What is taken out by a large negative number stays out, however few are left."""
    row = np.full(700, -3e38, np.float32)
    row[[3, 600]] = 3e38
    for options in ({"top_k": 50}, {"top_p": 0.9}, {"top_k": 2}, {}):
        params = SamplingParams(temperature=1.0, **options)
        assert set(draw(isa, row, params, [0.1, 0.9])) <= {3, 600}


@pytest.mark.parametrize("bad", [[-1], [2]])
def test_rows_that_are_not_there_are_refused(bad: list[int]) -> None:
    with pytest.raises(ValueError, match="no such row"):
        Plan(POOLS[2]).draw(np.zeros((2, 5), np.float32), bad, [(1.0, 0, 1.0, 0.0, 0.5)])


def test_every_row_has_its_options() -> None:
    with pytest.raises(ValueError, match="options each"):
        Plan(POOLS[2]).draw(np.zeros((2, 5), np.float32), [0, 1], [(1.0, 0, 1.0, 0.0, 0.5)])
