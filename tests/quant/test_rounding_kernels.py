"""The compiled loops against the same arithmetic in NumPy, one operation at a time: bit for bit, in
every instruction set that this machine has."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.format.scheme import IntScheme, PerGroup
from quant.kernels import _rounding
from quant.rounding_algorithms import feedback, sweep
from quant.rounding_algorithms.grid import Grid, ScaleDtype, scale_limits, stored_scale
from quant.rounding_algorithms.scales import full_range_grid, search_grid
from quant.rounding_algorithms.walk import Walk

Floats = npt.NDArray[np.float32]
Chunk = tuple[Floats, Floats, Floats, npt.NDArray[np.int32], Floats]
RANGES = [(-8.0, 7.0), (-128.0, 127.0), (0.0, 15.0)]
SETS = _rounding.instruction_sets()
sizes = st.tuples(st.integers(1, 140), st.integers(1, 128), st.integers(1, 5))


def draw(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def chunk(seed: int, rows: int, columns: int, groups: int) -> Chunk:
    """Weights or gradients, scale, zero, group_of and mixing of a chunk. Zeros are fractional."""
    scale = draw(seed + 1, groups, rows) * np.float32(0.2)
    scale[scale == 0] = 1.0
    group_of = np.random.default_rng(seed).integers(0, groups, columns).astype(np.int32)
    mixing = draw(seed + 3, columns, columns) / np.float32(columns)
    np.fill_diagonal(mixing, np.abs(np.diagonal(mixing)) + np.float32(0.5))
    return draw(seed, columns, rows), scale, draw(seed + 2, groups, rows), group_of, mixing


def snap(steps: npt.NDArray[Any], bounds: tuple[float, float]) -> Floats:
    levels: Floats = np.clip(np.rint(steps), np.float32(bounds[0]), np.float32(bounds[1]))
    return levels


def slow_feedback(
    left: Floats, scale: Floats, zero: Floats, group_of: Any, mixing: Floats, bounds: Any
) -> tuple[Floats, Floats]:
    left, levels, errors = left.copy(), np.empty_like(left), np.empty_like(left)
    for j, group in enumerate(group_of):
        for i in range(j):
            left[j] -= mixing[j, i] * errors[i]
        levels[j] = snap(left[j] / scale[group] + zero[group], bounds)
        errors[j] = (left[j] - (levels[j] - zero[group]) * scale[group]) / mixing[j, j]
    return levels, errors


def slow_sweep(
    gradient: Floats,
    scale: Floats,
    zero: Floats,
    group_of: Any,
    mixing: Floats,
    bounds: Any,
    start: Floats,
) -> tuple[Floats, Floats]:
    gradient, levels, changes = gradient.copy(), start.copy(), np.empty_like(gradient)
    for j, group in enumerate(group_of):
        for i in range(j):
            gradient[j] -= mixing[j, i] * changes[i]
        curvature = mixing[j, j] if mixing[j, j] > 0 else np.float32(1)
        value = (levels[j] - zero[group]) * scale[group] + gradient[j] / curvature
        moved = snap(value / scale[group] + zero[group], bounds)
        changes[j] = (moved - levels[j]) * scale[group]
        levels[j] = moved
    return levels, changes


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), size=sizes, bounds=st.sampled_from(RANGES))
def test_feedback(seed: int, size: tuple[int, int, int], bounds: tuple[float, float]) -> None:
    arguments = chunk(seed, *size)
    expected = slow_feedback(*arguments, bounds)
    for isa in SETS:
        ours = np.empty_like(arguments[0]), np.empty_like(arguments[0])
        _rounding.feedback(*arguments, *bounds, *ours, isa)
        np.testing.assert_array_equal(ours[0], expected[0])
        np.testing.assert_array_equal(ours[1], expected[1])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), size=sizes, bounds=st.sampled_from(RANGES), dead=st.booleans())
def test_sweep(
    seed: int, size: tuple[int, int, int], bounds: tuple[float, float], dead: bool
) -> None:
    arguments = chunk(seed, *size)
    if dead:
        arguments[4][0, 0] = 0.0
    start = snap(5 * draw(seed + 4, *arguments[0].shape), bounds)
    expected = slow_sweep(*arguments, bounds, start)
    for isa in SETS:
        levels, changes = start.copy(), np.empty_like(start)
        _rounding.sweep(*arguments, *bounds, levels, changes, isa)
        np.testing.assert_array_equal(levels, expected[0])
        np.testing.assert_array_equal(changes, expected[1])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 40))
def test_the_loops_that_codebooks_go_through_do_the_same(seed: int, rows: int) -> None:
    """On numbers with few bits nothing is lost on the way, in whatever order torch adds."""
    random = np.random.default_rng(seed)

    def few_bits(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.from_numpy(random.integers(low, high, shape).astype(np.float32))

    x, mixing = few_bits(-64, 64, 8, rows) / 8, few_bits(-1, 2, 8, 8) / 2
    mixing.diagonal().fill_(1.0)
    grid = Grid(2 ** few_bits(-3, 1, rows, 2), few_bits(-4, 4, rows, 2))
    walk = Walk.over(
        grid, IntScheme(8, False, PerGroup(4)), torch.from_numpy(random.permutation(8))
    )
    fast, slow = torch.zeros(8, rows), torch.zeros(8, rows)
    for module in (feedback, sweep):
        ours = module._compiled_chunk(x.clone(), walk, slice(0, 8), mixing, fast)
        theirs = module._plain_chunk(x.clone(), walk, slice(0, 8), mixing, slow)
        assert torch.equal(ours, theirs)
        assert torch.equal(fast, slow)


def slow_search(
    weight: torch.Tensor, h: Floats, scheme: IntScheme, dtype: ScaleDtype, lowest_zero: int
) -> tuple[Floats, Floats, Floats]:
    """scale, zero, error [out, groups]: sums run over the columns of a group in their order."""
    groups = weight.numpy().reshape(len(weight), -1, scheme.group_size(weight.shape[1]))
    h = h.reshape(groups.shape[1:])
    bounds = float(scheme.qmin), float(scheme.qmax)

    def levels(k: int, scale: Floats, zero: Floats) -> Floats:
        return snap(groups[..., k] / scale + zero, bounds)

    def error(scale: Floats, zero: Floats) -> Floats:
        total = np.zeros_like(scale)
        for k in range(groups.shape[2]):
            off = (levels(k, scale, zero) - zero) * scale - groups[..., k]
            total += off * off * h[:, k]
        return total

    def refitted(scale: Floats, zero: Floats) -> tuple[Floats, Floats]:
        norm, product = np.zeros_like(scale), np.zeros_like(scale)
        for k in range(groups.shape[2]):
            code = levels(k, scale, zero) - zero
            norm += code * h[:, k] * code
            product += code * h[:, k] * groups[..., k]
        new = product / np.where(norm > 0, norm, np.float32(1))
        new = np.where(new > 0, new, scale)
        return stored_scale(torch.from_numpy(new), dtype).numpy(), zero

    def spanning(step: int) -> tuple[Floats, Floats]:
        grid = full_range_grid(weight, scheme, dtype, 1.0 - step / 48, lowest_zero)
        return grid.scale.numpy(), grid.zero.numpy()

    def better(best: tuple[Floats, ...], grid: tuple[Floats, Floats]) -> tuple[Floats, ...]:
        new = (*grid, error(*grid))
        return tuple(np.where(new[2] < best[2], b, a) for a, b in zip(best, new, strict=True))

    best: tuple[Floats, ...] = (*spanning(0), error(*spanning(0)))
    for step in range(1, 25):
        best = better(best, spanning(step))
    for _ in range(3):
        best = better(best, refitted(best[0], best[1]))
        for shift in () if scheme.symmetric else (-1, 1):
            zero = np.clip(best[1] + np.float32(shift), scheme.qmin + lowest_zero, scheme.qmax)
            best = better(best, refitted(best[0], zero.astype(np.float32)))
    return best[0], best[1], best[2]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 9),
    groups=st.integers(1, 5),
    size=st.sampled_from([1, 7, 16, 64]),
    scheme=st.sampled_from([(4, True), (4, False), (8, True), (2, False)]),
    dtype=st.sampled_from(["float32", "float16", "bfloat16"]),
    lowest_zero=st.integers(0, 1),
    magnitude=st.sampled_from([1e-6, 1.0, 1e4]),
)
def test_search(
    seed: int,
    rows: int,
    groups: int,
    size: int,
    scheme: tuple[int, bool],
    dtype: ScaleDtype,
    lowest_zero: int,
    magnitude: float,
) -> None:
    """Also where 16-bit floats underflow, and with groups of zeros."""
    integers = IntScheme(*scheme, PerGroup(size))
    weight = torch.from_numpy(draw(seed, rows, groups * size) ** 3 * np.float32(magnitude))
    weight[0, :size] = 0.0
    importance = np.abs(draw(seed + 1, groups * size))
    scale, zero, error = slow_search(weight, importance, integers, dtype, lowest_zero)
    if integers.symmetric:
        other = slow_search(-weight, importance, integers, dtype, lowest_zero)
        scale = np.where(other[2] < error, -other[0], scale)
    kept = scale_limits(dtype)
    steps = [1.0 - step / 48 for step in range(25)]
    for isa in SETS:
        ours = np.empty_like(scale), np.empty_like(scale)
        bounds = integers.qmin, integers.qmax, integers.symmetric, integers.symmetric, lowest_zero
        _rounding.search(weight.numpy(), importance, *bounds, *kept, steps, 3, *ours, isa)
        np.testing.assert_array_equal(ours[0], scale)
        np.testing.assert_array_equal(ours[1], zero)
    grid = search_grid(weight, torch.from_numpy(importance), integers, dtype, True, lowest_zero)
    np.testing.assert_array_equal(grid.scale.numpy(), scale)


def test_arrays_that_do_not_fit_are_refused() -> None:
    left, scale, zero, group_of, mixing = chunk(0, 4, 3, 2)
    out = np.empty_like(left), np.empty_like(left)
    calls: list[tuple[str, list[Any]]] = [
        ("group_of must lie", [left, scale, zero, group_of + 2, mixing, -8, 7, *out]),
        ("group_of must be", [left, scale, zero, group_of[:2], mixing, -8, 7, *out]),
        ("scale and zero", [left, scale, zero[:1], group_of, mixing, -8, 7, *out]),
        ("mixing must be", [left, scale, zero, group_of, mixing[:2], -8, 7, *out]),
        ("must be as left", [left, scale, zero, group_of, mixing, -8, 7, out[0], out[1][:2]]),
        ("must rise", [left, scale, zero, group_of, mixing, 7, -8, *out]),
        ("named sse9", [left, scale, zero, group_of, mixing, -8, 7, *out, "sse9"]),
    ]
    for message, arguments in calls:
        with pytest.raises(ValueError, match=message):
            _rounding.feedback(*arguments)
    with pytest.raises(TypeError):
        _rounding.feedback(left, scale, zero, group_of, mixing, -8, 7, out[0], out[1].T)
