"""Norms, activations, rotation and the copies, against float64."""

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.kernels.cpu._native import Matrix, Plan
from tests.runtime.kernels.harness import (
    ISAS,
    POOLS,
    UNIT,
    Floats,
    gamma,
    random_floats,
    run_rows,
)

EXP = 8 * UNIT
"""Relative error of the kernels' exponential: a polynomial good to 1e-8, in 8 roundings."""

Doubles = npt.NDArray[np.float64]


def pick(plan: Plan, x: int, width: int, columns: slice) -> int:
    """A buffer with some of x's columns, by a product with zeros and ones, which is exact."""
    out = plan.add_buffer(columns.stop - columns.start, False)
    rows = np.ascontiguousarray(np.eye(width, dtype=np.float32)[columns])
    plan.add_linear(x, [(out, Matrix.from_numbers(rows, "float32", POOLS[1]), None)])
    return out


@settings(max_examples=30)
@given(width=st.integers(1, 90), start=st.integers(0, 89), size=st.integers(1, 90))
def test_a_slice_is_part_of_each_row(width: int, start: int, size: int) -> None:
    x = random_floats((3, width), seed=width)

    def build(plan: Plan, source: int) -> int:
        out = plan.add_buffer(size, False)
        plan.add_slice(out, source, start)
        return out

    if start + size > width:
        with pytest.raises(ValueError, match="beyond its source"):
            run_rows(x, build, ISAS[0])
    else:
        found = run_rows(x, build, ISAS[0])
        np.testing.assert_array_equal(found, x[:, start : start + size])


def test_a_looked_up_row_is_scaled_once() -> None:
    table, scale = random_floats((5, 70), seed=3), np.float32(33.94)

    def build(plan: Plan, source: int) -> int:
        out = plan.add_buffer(70, False)
        plan.add_embed(out, Matrix.from_numbers(table, "float32", POOLS[1]), float(scale))
        return out

    np.testing.assert_array_equal(run_rows(table, build, ISAS[0]), table * scale)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=40)
@given(size=st.integers(1, 150), runs=st.integers(1, 3), seed=st.integers(0, 99))
def test_rms_norm(isa: str, size: int, runs: int, seed: int) -> None:
    x = random_floats((3, runs * size), seed) * np.float32(7)
    weight = random_floats((size,), seed + 1)

    def build(plan: Plan, source: int) -> int:
        out = plan.add_buffer(runs * size, False)
        plan.add_rms_norm(out, source, weight.tolist(), 1e-5)
        return out

    exact = x.astype(np.float64).reshape(3, runs, size)
    mean = np.square(exact).mean(-1, keepdims=True) + np.float32(1e-5)
    expected = (exact / np.sqrt(mean) * weight).reshape(3, -1)
    # The square root halves the error of the sum; root, quotient and two products round once each.
    bound = (gamma(size + 3) / 2 + gamma(4)) * np.abs(expected)
    assert (np.abs(run_rows(x, build, isa) - expected) <= bound).all()


def gated(x: Floats, activation: str, isa: str) -> Floats:
    """activation(x) * 1 through the kernel."""
    width = x.shape[1]
    both = np.concatenate([x, np.ones_like(x)], axis=1)

    def build(plan: Plan, source: int) -> int:
        gate = pick(plan, source, 2 * width, slice(0, width))
        up = pick(plan, source, 2 * width, slice(width, 2 * width))
        out = plan.add_buffer(width, False)
        plan.add_gated_act(out, gate, up, activation)
        return out

    return run_rows(both, build, isa)


WIDE_RANGE = np.concatenate(
    [np.linspace(-120, 120, 401), np.geomspace(1e-30, 1, 50), -np.geomspace(1e-30, 1, 50)]
).astype(np.float32)[None]


@pytest.mark.parametrize("isa", ISAS)
def test_silu(isa: str) -> None:
    x = WIDE_RANGE.astype(np.float64)
    expected = x / (1 + np.exp(-x))
    found = gated(WIDE_RANGE, "silu", isa)
    # Below -87 the exponential is held at e**88: a result that small is zero to any sum.
    assert (np.abs(found - expected) <= (EXP + gamma(3)) * np.abs(expected) + 1e-35).all()


@pytest.mark.parametrize("isa", ISAS)
def test_gelu_tanh(isa: str) -> None:
    x = WIDE_RANGE.astype(np.float64)
    inner = math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)
    expected = 0.5 * x * (1 + np.tanh(inner))
    # inner * (1 - tanh(inner) ** 2) <= 0.45: how an error of inner reaches tanh, an absolute one.
    bound = np.abs(x) * 0.5 * (0.45 * gamma(6) + 2 * EXP + gamma(4)) + gamma(3) * np.abs(expected)
    assert (np.abs(gated(WIDE_RANGE, "gelu_tanh", isa) - expected) <= bound).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("cap", [0.5, 30.0])
def test_softcap_keeps_small_numbers_exact(isa: str, cap: float) -> None:
    def build(plan: Plan, source: int) -> int:
        plan.add_softcap(source, cap)
        return source

    expected = cap * np.tanh(WIDE_RANGE.astype(np.float64) / cap)
    # Where the quotient takes over from the series tanh is 0.245: absolute errors grow by 1 / 0.245
    # (below that the series' remainder is under one rounding).
    bound = (2 * (EXP + gamma(4)) / 0.245 + gamma(3)) * np.abs(expected)
    assert (np.abs(run_rows(WIDE_RANGE, build, isa) - expected) <= bound).all()


@pytest.mark.parametrize("heads, head_dim, dimension", [(1, 2, 2), (3, 16, 16), (2, 20, 12)])
def test_rope_rotates_halves_by_position(heads: int, head_dim: int, dimension: int) -> None:
    frequencies = [10000.0 ** (-2 * i / dimension) for i in range(dimension // 2)]
    positions = np.array([0, 1, 77, 8191, 131071], np.int32)
    x = random_floats((5, heads * head_dim), 3)

    def build(plan: Plan, source: int) -> int:
        out = plan.add_buffer(heads * head_dim, False)
        table = plan.add_rope_table(frequencies, 1.25)
        plan.add_rope(out, source, heads, head_dim, table)
        return out

    page_table = np.ones((1, 1), np.int32)
    found = run_rows(
        x, build, "auto", positions=positions, page_table=page_table, page_size=1 << 17
    )
    exact = x.astype(np.float64).reshape(5, heads, head_dim)
    half = dimension // 2
    turned = (exact[..., :half] + 1j * exact[..., half:dimension]) * 1.25
    turned *= np.exp(1j * positions[:, None, None] * np.array(frequencies))
    expected = np.concatenate([turned.real, turned.imag, exact[..., dimension:]], -1)
    size = 1.25 * np.abs(exact).max()
    # cos and sin, two products and a sum round once each; angles are float64.
    assert np.abs(found - expected.reshape(5, -1)).max() <= 2 * gamma(3) * size


def test_add_and_select_rows() -> None:
    x = random_floats((5, 70), 0)

    def build(plan: Plan, source: int) -> int:
        total, chosen = plan.add_buffer(70, False), plan.add_buffer(70, True)
        plan.add_add(total, source, source)
        plan.add_select_rows(chosen, total)
        return chosen

    np.testing.assert_array_equal(run_rows(x, build, "auto"), x + x)


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=60)
@given(size=st.integers(1, 2500), seed=st.integers(0, 99), data=st.data())
def test_argmax_is_numpys(isa: str, size: int, seed: int, data: st.DataObject) -> None:
    """Ties, infinities and NaN included: few values, so that they come together."""
    values = np.array([-np.inf, -1.0, -0.0, 0.0, 1.0, np.inf, np.nan], np.float32)
    few = data.draw(st.integers(1, len(values)))
    x = np.random.default_rng(seed).choice(values[:few], (3, size))
    found: list[Plan] = []

    def build(plan: Plan, source: int) -> int:
        plan.add_argmax(source)
        found.append(plan)
        return source

    run_rows(x, build, isa, threads=2)
    np.testing.assert_array_equal(found[0].best()[:3], x.argmax(axis=1))
