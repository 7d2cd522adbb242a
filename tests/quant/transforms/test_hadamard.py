"""Hadamard matrices and the rotations made of them are orthogonal, at every size."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.transforms.hadamard import factors, hadamard
from quant.transforms.rotation import random_rotation

UNKNOWN_TO_PALEY = {92, 116, 156, 172, 184, 188}
"""Orders up to 200 that need other constructions than doubling and Paley's two."""


def test_rows_are_orthogonal_for_every_order_up_to_200() -> None:
    found = set()
    for order in (1, 2, *range(4, 201, 4)):
        matrix = hadamard(order)
        if matrix is None:
            continue
        found.add(order)
        wide = matrix.astype(np.int64)
        assert set(np.unique(wide)) <= {-1, 1}
        assert (wide @ wide.T == order * np.eye(order)).all(), order
    assert found == {1, 2, *range(4, 201, 4)} - UNKNOWN_TO_PALEY


@pytest.mark.parametrize("order", [0, 3, 6, 10, 18, 202])
def test_orders_that_no_matrix_has_give_none(order: int) -> None:
    assert hadamard(order) is None


@pytest.mark.parametrize(
    ("size", "block"),
    [(576, 576), (896, 896), (1536, 1536), (3584, 3584), (4096, 4096), (5120, 5120), (64, 64)],
)
def test_widths_of_real_models_are_mixed_whole(size: int, block: int) -> None:
    assert np.prod(factors(size)) == block


def test_other_sizes_are_mixed_in_blocks() -> None:
    assert np.prod(factors(30)) == 2
    assert np.prod(factors(7)) == 1
    assert np.prod(factors(92)) == 4
    assert np.prod(factors(6 * 64)) == 384


@given(size=st.integers(1, 300), seed=st.integers(0, 2**32))
def test_rotations_are_orthogonal_and_repeatable(size: int, seed: int) -> None:
    rotation = random_rotation(size, seed, 0)
    matrix = rotation.columns(np.eye(size))
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(size), atol=size * 2.3e-16)
    values = np.random.default_rng(seed).standard_normal((size, 3))
    np.testing.assert_allclose(rotation.columns(values.T), values.T @ matrix, atol=size * 1e-14)
    np.testing.assert_allclose(rotation.rows(values), matrix.T @ values, atol=size * 1e-14)
    again = random_rotation(size, seed, 0)
    np.testing.assert_array_equal(again.columns(values.T), rotation.columns(values.T))


def test_every_channel_of_a_block_reaches_every_other() -> None:
    matrix = random_rotation(576, 0, 0).columns(np.eye(576))
    np.testing.assert_allclose(np.abs(matrix), 1 / 24, rtol=1e-15)


def test_streams_of_one_seed_differ() -> None:
    signs = [random_rotation(64, 0, stream).signs.tobytes() for stream in range(8)]
    assert len(set(signs)) == 8
