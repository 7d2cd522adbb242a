"""Searched scales, refitted scales, and the statistics they come from."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.format.scheme import IntScheme, PerChannel, PerGroup
from quant.rounding_algorithms.grid import Grid, decode, nearest_levels, stored_scale
from quant.rounding_algorithms.refit import refit_grid
from quant.rounding_algorithms.result import quadratic_form
from quant.rounding_algorithms.scales import full_range_grid, search_grid
from quant.statistics import InputMoments

SCHEMES = [
    IntScheme(bits, symmetric, grain)
    for bits in (4, 8)
    for symmetric in (True, False)
    for grain in (PerGroup(32), PerChannel())
]


def rounded(weight: torch.Tensor, grid: Grid, scheme: IntScheme) -> torch.Tensor:
    wide = grid.columns(scheme, weight.shape[1])
    return decode(nearest_levels(weight, wide, scheme), wide)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), scheme=st.sampled_from(SCHEMES), rows=st.integers(1, 5))
def test_search_is_never_worse_than_the_full_range(seed: int, scheme: IntScheme, rows: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, 64, generator=generator) ** 3
    importance = torch.rand(64, generator=generator)
    found = search_grid(weight, importance, scheme, "bfloat16")
    start = full_range_grid(weight, scheme, "bfloat16")

    def error(grid: Grid) -> torch.Tensor:
        squares = (rounded(weight, grid, scheme) - weight).square() * importance
        return squares.reshape(rows, -1, scheme.group_size(64)).sum(-1)

    assert bool((error(found) <= error(start)).all())


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_full_range_clips_nothing(scheme: IntScheme) -> None:
    """Half a step at most, and the scale's own rounding times the largest code."""
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1))
    grid = full_range_grid(weight, scheme, "float32")
    step = grid.columns(scheme, 64).scale
    assert bool(((rounded(weight, grid, scheme) - weight).abs() <= step * (0.5 + 1e-4)).all())


@pytest.mark.parametrize("num_bits", [2, 3, 4, 8])
@pytest.mark.parametrize("offset", [0.0, 0.05, 1.0, 5.0])
def test_a_lowest_zero_point_clips_nothing_either(num_bits: int, offset: float) -> None:
    """Rows of weights around zero up to rows far above it, which would have the lowest of all."""
    scheme = IntScheme(num_bits, False, PerGroup(32))
    weight = torch.randn(8, 64, generator=torch.Generator().manual_seed(1)).abs() + offset - 0.1
    weight[0] = 0.0
    grid = full_range_grid(weight, scheme, "float32", lowest_zero=1)
    assert float(grid.zero.min()) == scheme.qmin + 1
    step = grid.columns(scheme, weight.shape[1]).scale
    assert bool(((rounded(weight, grid, scheme) - weight).abs() <= step * (0.5 + 1e-4)).all())
    found = search_grid(weight, torch.ones(64), scheme, "float16", lowest_zero=1)
    assert float(found.zero.min()) >= scheme.qmin + 1


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_zero_is_exact(scheme: IntScheme) -> None:
    weight = torch.rand(4, 64, generator=torch.Generator().manual_seed(2)) + 1.0
    weight[:, ::3] = 0.0
    grid = search_grid(weight, torch.ones(64), scheme, "bfloat16")
    assert not rounded(weight, grid, scheme)[:, ::3].any()


def test_stored_scales_are_what_the_dtype_can_hold() -> None:
    scale = torch.tensor([0.0, 1e-30, 0.1, 1e30])
    half = stored_scale(scale, "float16")
    assert half.tolist()[0] == 1.0
    assert half.tolist()[1] == np.finfo(np.float16).tiny
    assert half.tolist()[2] == np.float16(0.1)
    assert half.tolist()[3] == np.finfo(np.float16).max
    assert torch.equal(stored_scale(scale[2:], "bfloat16"), scale[2:].bfloat16().float())


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), scheme=st.sampled_from(SCHEMES))
def test_refit_is_the_best_scale_for_its_codes(seed: int, scheme: IntScheme) -> None:
    """No scale near the refitted one loses less, so long as none was kept for being negative."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(256, 64, generator=generator)
    hessian = inputs.T @ inputs / 256
    weight = torch.randn(3, 64, generator=generator)
    grid = full_range_grid(weight, scheme, "float32")
    codes = nearest_levels(weight, grid.columns(scheme, weight.shape[1]), scheme)
    product = (weight - rounded(weight, grid, scheme)) @ hessian
    best = refit_grid(weight, codes, grid, product, hessian, scheme, "float32")

    def loss(scale: torch.Tensor) -> torch.Tensor:
        wide = Grid(scale.double(), grid.zero.double()).columns(scheme, weight.shape[1])
        return quadratic_form(weight.double() - decode(codes.double(), wide), hessian.double())

    # The loss is a parabola in each scale: one that float32 sums and the ridge put off by 1e-5 of
    # itself costs the square of that, as a part of the whole output.
    slack = 1e-5**2 * quadratic_form(weight.double(), hessian.double())
    for factor in (1.0 - 1e-3, 1.0 + 1e-3):
        assert bool((loss(best.scale) <= loss(best.scale * factor) + slack).all())
    assert bool((loss(best.scale) <= loss(grid.scale) + slack).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moments_equal_float64(dtype: torch.dtype) -> None:
    """300 columns cross a tile; the bound is that of a float32 sum of so many products."""
    parts = torch.randn(3, 5, 40, 300, generator=torch.Generator().manual_seed(3)).to(dtype)
    moments = InputMoments(300)
    for part in parts:
        moments.add([part])
    flat = parts.reshape(-1, 300).double()
    assert moments.tokens == 600
    expected = (flat.T @ flat / 600).float()
    torch.testing.assert_close(moments.hessian(), expected, atol=600 * 2**-24 * 4, rtol=0)
    assert torch.equal(moments.hessian(), moments.hessian().T)


def test_the_first_token_counts_for_its_share() -> None:
    """Two samples of four tokens: weight 0.5 / 0.5 * 3 for each first token, 1 for the others."""
    inputs = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(4))
    moments = InputMoments(5, first_token_share=0.5)
    moments.add([inputs])
    weights = torch.tensor([3.0, 1.0, 1.0, 1.0] * 2, dtype=torch.float64)
    flat = inputs.reshape(-1, 5).double()
    expected = ((flat * weights[:, None]).T @ flat / weights.sum()).float()
    torch.testing.assert_close(moments.hessian(), expected)
    assert moments.tokens == 8


def test_inputs_without_samples_count_alike() -> None:
    inputs = torch.randn(8, 5, generator=torch.Generator().manual_seed(5))
    shared, plain = InputMoments(5, first_token_share=0.5), InputMoments(5)
    shared.add([inputs])
    plain.add([inputs])
    assert torch.equal(shared.hessian(), plain.hessian())
