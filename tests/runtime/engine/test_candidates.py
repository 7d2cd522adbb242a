"""Which tokens stay, and the draw, against a slow second implementation in plain Python floats."""

from math import exp, fsum, log

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from runtime.engine.candidates import (
    Float32,
    draw_token,
    largest,
    log_probabilities,
    nucleus,
    place_of,
)
from runtime.engine.request import SamplingParams

FINITE = st.floats(-20, 20, width=32)
ROWS = st.lists(FINITE | st.sampled_from([-1.0, 0.0, 2.5, float("-inf")]), min_size=1, max_size=24)


def row_of(values: list[float]) -> Float32:
    return np.array(values, np.float32)


def distribution(logits: list[float], params: SamplingParams) -> dict[int, float]:
    """The definition, step by step: sort, cut to top_k, to top_p, to min_p, share what is left."""
    peak = max(logits)
    weight = {i: exp((value - peak) / params.temperature) for i, value in enumerate(logits)}
    order = sorted(weight, key=lambda i: (-logits[i], i))
    if params.top_k > 0:
        order = order[: params.top_k]
    if params.top_p < 1:
        goal, mass, kept = params.top_p * fsum(weight[i] for i in order), 0.0, []
        for i in order:
            kept.append(i)
            mass += weight[i]
            assume(abs(mass - goal) > 1e-5 * goal)
            if mass >= goal:
                break
        order = kept
    assume(all(abs(weight[i] - params.min_p) > 1e-5 for i in order[1:]) or params.min_p == 0)
    order = [i for i in order if weight[i] >= params.min_p]
    total = fsum(weight[i] for i in order)
    return {i: weight[i] / total for i in order}


@settings(max_examples=150)
@given(
    values=ROWS,
    temperature=st.floats(0.05, 5),
    top_k=st.integers(0, 8),
    top_p=st.floats(0.05, 1) | st.just(1.0),
    min_p=st.just(0.0) | st.floats(0.001, 1),
)
def test_a_draw_inverts_the_distribution_by_definition(
    values: list[float], temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    """Over a grid of N uniforms, an interval of width p holds N * p points give or take one; 32-bit
    weights move each of its two ends by less than 1e-5 of the whole."""
    assume(max(values) > float("-inf"))
    # Distinct in float32 but equal after exp would leave the order of a tie open.
    assume(all(a == b or abs(a - b) > 1e-4 for a in values for b in values))
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    expected = distribution([float(v) for v in row_of(values)], params)
    points = 400
    drawn = [draw_token(row_of(values), params, (j + 0.5) / points) for j in range(points)]
    for token_id in range(len(values)):
        ideal = expected.get(token_id, 0.0) * points
        assert abs(drawn.count(token_id) - ideal) <= 1 + 2e-5 * points
        if token_id not in expected:
            assert token_id not in drawn


@given(values=ROWS, count=st.integers(0, 30))
def test_largest_is_a_stable_sort(values: list[float], count: int) -> None:
    row = row_of(values)
    expected = sorted(range(len(values)), key=lambda i: (-row[i], i))[:count]
    assert largest(row, count).tolist() == expected


@given(
    weights=st.lists(st.floats(0, 1, width=32) | st.sampled_from([1e-4, 1e-8, 1e-20]), max_size=40),
    top_p=st.floats(0.01, 0.999999),
)
def test_nucleus_is_the_shortest_prefix(weights: list[float], top_p: float) -> None:
    row = row_of([1.0, *weights])
    kept = nucleus(row, top_p)
    order = largest(row, len(row)).tolist()[: len(kept)]
    assert kept.tolist() == sorted(order)
    exact = [float(w) for w in row]
    goal, mass = top_p * fsum(exact), fsum(exact[i] for i in kept)
    assert mass >= goal * (1 - 1e-12)
    assert mass - exact[order[-1]] <= goal * (1 + 1e-12)


@given(
    weights=st.lists(st.sampled_from([0.0, 1e-30, 0.1, 1.0]), min_size=1, max_size=9),
    gap=st.sampled_from([0, 1, 250, 600]),
    uniform=st.floats(0, 1, exclude_max=True) | st.sampled_from([0.0, 1 - 2**-53]),
)
def test_a_place_holds_its_uniform_and_has_weight(
    weights: list[float], gap: int, uniform: float
) -> None:
    """Weights far apart too, so that they fall into different partial sums, or into none."""
    assume(any(weights))
    spread = [value for weight in weights for value in (weight, *[0.0] * gap)]
    row = row_of(spread)
    place = place_of(row, uniform)
    assert row[place] > 0
    exact = [float(w) for w in row]
    target, slack = uniform * fsum(exact), fsum(exact) * 1e-14
    assert fsum(exact[:place]) - slack <= target <= fsum(exact[: place + 1]) + slack


def test_equal_weights_share_the_interval_evenly() -> None:
    """1000 weights are several partial sums; sums of ones are exact."""
    weights = np.ones(1000, np.float32)
    assert [place_of(weights, (i + 0.5) / 1000) for i in range(1000)] == list(range(1000))


def test_min_p_is_a_share_of_the_largest_probability() -> None:
    row = np.log(np.array([1.0, 0.52, 0.48, 0.01])).astype(np.float32)
    params = SamplingParams(min_p=0.5)
    assert {draw_token(row, params, (j + 0.5) / 50) for j in range(50)} == {0, 1}


@pytest.mark.parametrize("temperature", [1e-300, 1e-38, 1e-6])
def test_a_tiny_temperature_is_greedy_and_warns_of_nothing(temperature: float) -> None:
    row = row_of([3.0, 3.5, -float("inf"), 1e30, 2.0])
    assert draw_token(row, SamplingParams(temperature=temperature), 0.999) == 3


def test_a_huge_temperature_is_uniform() -> None:
    row = row_of([50.0, -50.0, 0.0, 7.0])
    params = SamplingParams(temperature=1e300)
    assert [draw_token(row, params, (j + 0.5) / 4) for j in range(4)] == [0, 1, 2, 3]


@given(values=ROWS, count=st.integers(0, 6), data=st.data())
def test_log_probabilities_by_definition(
    values: list[float], count: int, data: st.DataObject
) -> None:
    """Sums of at most 24 float32 exponentials, each off by at most 4 units in the last place."""
    row = row_of(values)
    exact = [float(v) for v in row]
    assume(max(exact) > float("-inf"))
    chosen = data.draw(st.integers(0, len(exact) - 1))
    total = log(fsum(exp(v - max(exact)) for v in exact)) + max(exact)
    result = log_probabilities(row, chosen, count)
    assert result.chosen == pytest.approx(exact[chosen] - total, abs=4 * 2**-23 + 1e-12)
    order = sorted(range(len(exact)), key=lambda i: (-exact[i], i))[:count]
    assert [token_id for token_id, _ in result.top] == order
    for token_id, value in result.top:
        assert value == pytest.approx(exact[token_id] - total, abs=4 * 2**-23 + 1e-12)
