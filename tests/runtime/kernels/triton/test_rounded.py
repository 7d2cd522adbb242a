"""Rounded rows and their products against the oracle's rounding and float64."""

from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from compile.input_rounding import InputRounding
from runtime.executors.torch.rounding import round_input
from tests.runtime.gpu import COMPILED, DEVICE, sum_bound

# The device is chosen before kernels are defined.
from runtime.kernels.triton.norm import round_rows  # isort: skip
from runtime.kernels.triton.rounded import RoundedWeight, rounded_matmul  # isort: skip

Numbers = Literal["int8", "e4m3"]
NUMBERS: tuple[Numbers, ...] = ("int8", "e4m3")


@settings(max_examples=10, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 80), st.floats(-20, 20),
    st.sampled_from(NUMBERS),
)  # fmt: skip
def test_rows_are_rounded_as_the_oracle_rounds_them(
    seed: int, rows: int, columns: int, power: float, numbers: Numbers
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, columns, generator=generator) * 2.0**power
    x[0] = 0
    rounded = round_rows(x.to(DEVICE), numbers)
    found = rounded.codes.cpu().float() * rounded.scale.cpu()[:, None]
    assert torch.equal(found, round_input(x, InputRounding(numbers)))


@settings(max_examples=10, deadline=None)
@given(
    st.integers(0, 2**31), st.integers(1, 18), st.integers(1, 70), st.integers(1, 300),
    st.sampled_from(NUMBERS), st.booleans(),
)  # fmt: skip
def test_products_are_those_of_float64(
    seed: int, rows: int, out: int, columns: int, numbers: Numbers, biased: bool
) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = round_rows(torch.randn(rows, columns, generator=generator).to(DEVICE), numbers)
    w = round_rows(torch.randn(out, columns, generator=generator).to(DEVICE), numbers)
    bias = torch.randn(out, generator=generator) if biased else None
    weight = RoundedWeight(w.codes, w.scale)
    on_device = None if bias is None else bias.to(DEVICE)
    found = rounded_matmul(x, weight, torch.float32, on_device).cpu().double()
    left = x.codes.cpu().double() * x.scale.cpu().double()[:, None]
    right = w.codes.cpu().double() * w.scale.cpu().double()[:, None]
    offset = 0 if bias is None else bias.double()
    # Integers are summed without an error, whatever their number.
    length = 0 if numbers == "int8" else columns
    magnitude = left.abs() @ right.abs().T + (0 if bias is None else bias.double().abs())
    bound = sum_bound(magnitude, length)
    if COMPILED and numbers == "e4m3":
        bound = bound + tensor_core_bound(left, right)
    assert ((found - (left @ right.T + offset)).abs() <= bound).all()


def tensor_core_bound(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Tensor cores keep 13 bits behind the point of the largest of the products of e4m3 that they
    add, and of the sum so far (DeepSeek-V3, section 3.5.2): each of them may lose so much."""
    products = left[:, None] * right[None]
    largest = torch.maximum(products.abs(), products.cumsum(-1).abs()).amax(-1)
    return products.shape[-1] * 2.0**-13 * largest


@pytest.mark.parametrize("numbers", NUMBERS)
def test_ties_go_to_the_even_neighbour(numbers: Numbers) -> None:
    top = 127.5 if numbers == "int8" else 448.0
    ties = {"int8": [0.5, 1.5, 2.5, -0.5, -1.5], "e4m3": [17.0, 19.0, 400.0, -17.0, 2.0**-10]}
    row = torch.tensor([[top, *ties[numbers]]], device=DEVICE)
    found = round_rows(row, numbers).codes.cpu().float()[0, 1:].tolist()
    wanted = {"int8": [0.0, 2.0, 2.0, 0.0, -2.0], "e4m3": [16.0, 20.0, 384.0, -16.0, 0.0]}
    assert found == wanted[numbers]
