"""Products with packed integers against float64, over shapes, groups, zero points and splits."""

from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.runtime.gpu import DEVICE, sum_bound

# The device is chosen before kernels are defined.
from runtime.kernels.triton.norm import round_rows  # isort: skip
from runtime.kernels.triton.tuning import MatmulConfig  # isort: skip
from runtime.kernels.triton.weight_only import PackedInteger, pack_integer, weight_only_matmul  # isort: skip


def make(
    seed: int, rows: int, columns: int, bits: int, group: int, asymmetric: bool
) -> tuple[PackedInteger, torch.Tensor]:
    """A random weight, packed on the device, and its numbers in float64 [rows, columns]."""
    generator = torch.Generator().manual_seed(seed)
    low, high = -(1 << (bits - 1)), 1 << (bits - 1)
    groups = -(-columns // group)
    codes = torch.randint(low, high, (rows, columns), dtype=torch.int8, generator=generator)
    scale = (torch.rand(rows, groups, generator=generator) + 0.1).to(torch.bfloat16)
    zeros = None
    exact = codes.double()
    of_column = torch.arange(columns) // group
    if asymmetric:
        zeros = torch.randint(low, high, (rows, groups), dtype=torch.int8, generator=generator)
        exact = exact - zeros.double()[:, of_column]
        zeros = zeros.to(DEVICE)
    packed = pack_integer(codes.to(DEVICE), scale.to(DEVICE), zeros, bits, group)
    return packed, exact * scale.double()[:, of_column]


@settings(max_examples=10, deadline=None)
@given(
    st.integers(0, 2**31),
    st.integers(1, 19),
    st.integers(1, 70),
    st.integers(1, 150),
    st.sampled_from([2, 3, 4, 8]),
    st.sampled_from([32, 64, 128]),
    st.booleans(),
    st.integers(1, 3),
    st.booleans(),
)
def test_products_are_those_of_float64(
    seed: int,
    tokens: int,
    rows: int,
    columns: int,
    bits: int,
    group: int,
    asymmetric: bool,
    splits: int,
    biased: bool,
) -> None:
    packed, exact = make(seed, rows, columns, bits, group, asymmetric)
    generator = torch.Generator().manual_seed(seed + 1)
    x = torch.randn(tokens, columns, generator=generator)
    bias = torch.randn(rows, generator=generator) if biased else None
    found = weight_only_matmul(
        x.to(DEVICE),
        packed,
        None if bias is None else bias.to(DEVICE),
        MatmulConfig(16, 32, splits),
    )
    wanted = x.double() @ exact.T + (0 if bias is None else bias.double())
    # Before a scale multiplies, a group's sum is of codes times inputs.
    magnitude = x.double().abs() @ exact.abs().T + (0 if bias is None else bias.double().abs())
    assert ((found.cpu().double() - wanted).abs() <= sum_bound(magnitude, columns)).all()


def test_scales_that_multiply_first_round_the_weight_to_the_inputs_dtype() -> None:
    packed, exact = make(3, 40, 96, 4, 32, True)
    x = torch.randn(7, 96, generator=torch.Generator().manual_seed(4)).to(torch.float16)
    config = MatmulConfig(16, 32, scale_first=True)
    found = weight_only_matmul(x.to(DEVICE), packed, config=config).cpu()
    wanted = x.double() @ exact.to(torch.float16).double().T
    magnitude = x.double().abs() @ exact.abs().T
    rounding = 2.0**-11 * wanted.abs()
    assert ((found.double() - wanted).abs() <= sum_bound(magnitude, 96) + rounding).all()


@pytest.mark.parametrize(
    ("bits", "group", "least"), [(4, 32, True), (5, 64, True), (2, 16, True), (6, 16, False)]
)
@pytest.mark.parametrize("scale_first", [False, True])
def test_minimums_and_groups_of_16(bits: int, group: int, least: bool, scale_first: bool) -> None:
    """As ggml's K-quants have them, the last group alone in its tile."""
    columns = 80 if group == 16 else 2 * group
    generator = torch.Generator().manual_seed(bits)
    low, high = (0, 1 << bits) if least else (-(1 << (bits - 1)), 1 << (bits - 1))
    codes = torch.randint(low, high, (20, columns), dtype=torch.int8, generator=generator)
    scale = torch.rand(20, columns // group, generator=generator) + 0.1
    minimum = -4 * torch.rand(20, columns // group, generator=generator) if least else None
    on_device = None if minimum is None else minimum.to(DEVICE)
    packed = pack_integer(codes.to(DEVICE), scale.to(DEVICE), None, bits, group, on_device)
    x = torch.randn(3, columns, generator=generator)
    config = MatmulConfig(16, 32, 2, scale_first=scale_first)
    found = weight_only_matmul(x.to(DEVICE), packed, config=config).cpu().double()
    of_column = torch.arange(columns) // group
    products = codes.double() * scale.double()[:, of_column]
    offsets = 0 * products if minimum is None else minimum.double()[:, of_column]
    wanted = x.double() @ (products + offsets).T
    magnitude = x.double().abs() @ (products.abs() + offsets.abs()).T
    assert ((found - wanted).abs() <= sum_bound(magnitude, columns + 2)).all()


@pytest.mark.parametrize("numbers", ["int8", "e4m3"])
def test_rounded_rows_are_multiplied_as_the_numbers_that_they_stand_for(
    numbers: Literal["int8", "e4m3"],
) -> None:
    packed, exact = make(8, 40, 100, 4, 32, True)
    x = torch.randn(5, 100, generator=torch.Generator().manual_seed(9))
    rounded = round_rows(x.to(DEVICE), numbers)
    found = weight_only_matmul(rounded, packed, None, MatmulConfig(16, 32, 2), torch.float32)
    value = rounded.codes.cpu().double() * rounded.scale.cpu().double()[:, None]
    wanted = value @ exact.T
    magnitude = value.abs() @ exact.abs().T
    assert ((found.cpu().double() - wanted).abs() <= sum_bound(magnitude, 100)).all()


def test_rows_of_a_wider_tensor_and_no_rows_at_all() -> None:
    packed, exact = make(5, 24, 64, 4, 32, False)
    wide = torch.randn(6, 100, generator=torch.Generator().manual_seed(6)).to(DEVICE)
    found = weight_only_matmul(wide[:, 10:74], packed)
    wanted = wide[:, 10:74].cpu().double() @ exact.T
    assert torch.allclose(found.cpu().double(), wanted, rtol=1e-5, atol=1e-4)
    assert weight_only_matmul(wide[:0, :64], packed).shape == (0, 24)


def test_four_bits_take_half_a_byte() -> None:
    packed, _ = make(0, 64, 128, 4, 32, False)
    assert packed.codes.nbytes == 64 * 128 // 2
    assert packed.nbytes == 64 * 128 // 2 + 64 * 4 * 2


@pytest.mark.parametrize("scale_first", [False, True])
def test_bfloat16_is_multiplied_as_served(scale_first: bool) -> None:
    """Sums of codes times bfloat16 inputs are those of float32; the result is rounded once, and the
    weight once more where scales multiply first."""
    packed, exact = make(3, 40, 96, 4, 32, True)
    x = torch.randn(7, 96, generator=torch.Generator().manual_seed(4)).to(torch.bfloat16)
    config = MatmulConfig(16, 32, scale_first=scale_first)
    found = weight_only_matmul(x.to(DEVICE), packed, config=config).cpu()
    assert found.dtype == torch.bfloat16
    held = exact.to(torch.bfloat16).double() if scale_first else exact
    wanted = x.double() @ held.T
    magnitude = x.double().abs() @ exact.abs().T
    rounding = 2.0**-8 * wanted.abs()
    assert ((found.double() - wanted).abs() <= sum_bound(magnitude, 96) + rounding).all()
