"""What rounding reports about itself."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.format.scheme import IntScheme, PerGroup
from quant.rounding_algorithms.grid import Grid, decode, decode_on, nearest_levels, nearest_on
from quant.rounding_algorithms.result import clip_ratio, quadratic_form


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 4), columns=st.integers(1, 300))
def test_quadratic_form_equals_the_whole_product(seed: int, rows: int, columns: int) -> None:
    """Above 128 columns, blocks below the diagonal are not multiplied. float64 sums bound it."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    half = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    matrix = half + half.T
    expected = torch.einsum("ri,ij,rj->r", x, matrix, x)
    size = torch.einsum("ri,ij,rj->r", x.abs(), matrix.abs(), x.abs())
    bound = 2 * (2 * columns + 2) * np.finfo(np.float64).eps * size
    assert bool(((quadratic_form(x, matrix) - expected).abs() <= bound).all())


@pytest.mark.parametrize("columns", [96, 80])
def test_rounding_by_group_equals_rounding_by_column(columns: int) -> None:
    """Also where the last group is short."""
    generator = torch.Generator().manual_seed(columns)
    scheme = IntScheme(4, False, PerGroup(32))
    weight = torch.randn(5, columns, generator=generator)
    grid = Grid(torch.rand(5, 3, generator=generator), torch.randn(5, 3, generator=generator))
    wide = grid.columns(scheme, columns)
    levels = nearest_on(weight, grid, scheme)
    assert torch.equal(levels, nearest_levels(weight, wide, scheme))
    assert torch.equal(decode_on(levels, grid, scheme), decode(levels, wide))


def test_clipped_weights_are_those_half_a_step_beyond_the_last_level() -> None:
    """Levels reach from -8 to 7: with a scale of 0.5, 3.8 is beyond them, 3.7 is not."""
    weight = torch.tensor([[3.7, 3.8, -4.2, -4.3], [0.0, 1.0, 2.0, 99.0]])
    grid = Grid(torch.full((2, 1), 0.5), torch.zeros(2, 1))
    assert clip_ratio(weight, grid, IntScheme(4, True, PerGroup(4))) == 3 / 8
