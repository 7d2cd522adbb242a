"""Sums of products over tokens, against float64."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.kernels import _moments
from quant.products import Term, product_jobs, rows_of

needs_bfloat16 = pytest.mark.skipif(
    not _moments.supported(), reason="this processor does not multiply bfloat16 numbers"
)


def random_rows(tokens: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(tokens, columns, generator=torch.Generator().manual_seed(seed)).bfloat16()


def summed(
    pairs: list[tuple[torch.Tensor, torch.Tensor]], weight: float, as_bfloat16: bool, upper: bool
) -> torch.Tensor:
    terms = [
        Term(rows_of(left, as_bfloat16), rows_of(right, as_bfloat16), weight)
        for left, right in pairs
    ]
    total = torch.zeros(pairs[0][0].shape[1], pairs[0][1].shape[1])
    for job in product_jobs(total, terms, upper):
        job()
    return total


def expected(
    pairs: list[tuple[torch.Tensor, torch.Tensor]], weight: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The sum, and by how much float32 sums in any order may miss it."""
    total = sum(left.double().T @ right.double() for left, right in pairs) * weight
    sizes = sum(left.double().abs().T @ right.double().abs() for left, right in pairs) * weight
    terms = sum(len(left) for left, _ in pairs) + 2 * len(pairs)
    assert isinstance(total, torch.Tensor) and isinstance(sizes, torch.Tensor)
    return total, sizes * terms * 2.0**-24


@settings(max_examples=40, deadline=None)
@given(
    tokens=st.lists(st.integers(1, 600), min_size=1, max_size=3),
    left=st.integers(1, 160),
    right=st.integers(1, 160),
    weight=st.sampled_from([1.0, 0.25, 130.0]),
    as_bfloat16=st.booleans(),
)
def test_products_equal_float64(
    tokens: list[int], left: int, right: int, weight: float, as_bfloat16: bool
) -> None:
    """Numbers of tokens and columns that fill no chunk, no panel and no vector."""
    pairs = [
        (random_rows(count, left, 2 * seed), random_rows(count, right, 2 * seed + 1))
        for seed, count in enumerate(tokens)
    ]
    total, slack = expected(pairs, weight)
    got = summed(pairs, weight, as_bfloat16, upper=False)
    assert bool(((got.double() - total).abs() <= slack).all())


@settings(max_examples=20, deadline=None)
@given(tokens=st.integers(1, 300), columns=st.integers(1, 300), as_bfloat16=st.booleans())
def test_the_upper_half_is_that_of_the_whole(tokens: int, columns: int, as_bfloat16: bool) -> None:
    rows = random_rows(tokens, columns, 7)
    whole = summed([(rows, rows)], 1.0, as_bfloat16, upper=False)
    half = summed([(rows, rows)], 1.0, as_bfloat16, upper=True)
    if as_bfloat16 and _moments.supported():
        assert torch.equal(torch.triu(half), torch.triu(whole))
    slack = expected([(rows, rows)], 1.0)[1]
    assert bool((torch.triu(half - whole).double().abs() <= 2 * slack).all())


@needs_bfloat16
@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"last": 9}, "no such panels"),
        ({"sum": np.zeros((60, 48), np.float32)}, "the shape that packed_shape gives"),
        ({"sum": np.zeros((60, 59), np.float32), "upper": True}, "only a square"),
        ({"right": np.zeros(_moments.packed_shape(300, 60), np.uint16)}, "as many chunks"),
    ],
)
def test_shapes_are_checked(changed: dict[str, Any], said: str) -> None:
    packed = np.zeros(_moments.packed_shape(3, 60), np.uint16)
    right: dict[str, Any] = {
        "left": packed,
        "right": packed,
        "weight": 1.0,
        "upper": False,
        "first": 0,
        "last": 2,
        "sum": np.zeros((60, 60), np.float32),
    }
    _moments.add_products(**right)
    with pytest.raises(ValueError, match=said):
        _moments.add_products(**{**right, **changed})
    with pytest.raises(ValueError, match="packed"):
        _moments.pack_rows(np.zeros((3, 200), np.uint16), packed)
