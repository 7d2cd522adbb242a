"""Norms and gated activations against plain PyTorch in float64, and rounded against the oracle."""

from typing import Literal

import pytest
import torch

from compile.input_rounding import InputRounding
from runtime.executors.torch.executor import activate
from runtime.executors.torch.rounding import round_input
from tests.runtime.gpu import DEVICE

# The device is chosen before kernels are defined.
from runtime.kernels.triton.gated import Activation, gated, gated_rounded  # isort: skip
from runtime.kernels.triton.norm import rms_norm, rms_norm_rounded  # isort: skip
from runtime.kernels.triton.rounded import RoundedRows  # isort: skip

Numbers = Literal["int8", "e4m3"]
ROUNDING_OF_TEN_STEPS = 10 * 2.0**-23
"""Relative: a handful of float32 operations, each half a step off, and a function of two steps."""


def value_of(rounded: RoundedRows) -> torch.Tensor:
    return rounded.codes.cpu().float() * rounded.scale.cpu()[:, None]


def exact_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    wide = x.double()
    return wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight.double()


@pytest.mark.parametrize(("rows", "size"), [(1, 1), (3, 31), (5, 64), (0, 8)])
@pytest.mark.parametrize("summed", [False, True])
def test_norm(rows: int, size: int, summed: bool) -> None:
    generator = torch.Generator().manual_seed(size)
    x, residual = torch.randn(2, rows, size, generator=generator)
    weight = torch.rand(size, generator=generator)
    kept = residual.clone().to(DEVICE)
    found = rms_norm(x.to(DEVICE), weight.to(DEVICE), 1e-5, kept if summed else None).cpu()
    total = x + residual if summed else x
    wanted = exact_norm(total, weight, 1e-5)
    # A mean of `size` squares is off by that many half steps, and its root by half of them.
    bound = (ROUNDING_OF_TEN_STEPS + size * 2.0**-25) * wanted.abs()
    assert ((found.double() - wanted).abs() <= bound).all()
    assert torch.equal(kept.cpu(), total if summed else residual)


@pytest.mark.parametrize("numbers", ["int8", "e4m3"])
def test_norm_rounds_as_if_the_row_had_been_written(numbers: Numbers) -> None:
    generator = torch.Generator().manual_seed(1)
    x, residual = torch.randn(2, 4, 48, generator=generator)
    weight = torch.rand(48, generator=generator).to(DEVICE)
    found = rms_norm_rounded(x.to(DEVICE), weight, 1e-5, numbers, residual.clone().to(DEVICE))
    row = rms_norm(x.to(DEVICE), weight, 1e-5, residual.clone().to(DEVICE)).cpu()
    assert torch.equal(value_of(found), round_input(row, InputRounding(numbers)))


# The interpreter's numpy warns of the infinity that a GPU takes without a word.
@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
@pytest.mark.parametrize("size", [1, 33, 1100])
def test_gate(activation: Activation, size: int) -> None:
    x = 4 * torch.randn(3, 2 * size, generator=torch.Generator().manual_seed(size))
    x[0, 0], x[1, 0] = 90.0, -90.0
    found = gated(x.to(DEVICE), activation).cpu().double()
    gate, up = x[:, :size].double(), x[:, size:].double()
    wanted = activate(gate, activation) * up
    # tanh is 1 - 2 / (1 + e): what cancels there is a step of 1, not of the result.
    bound = ROUNDING_OF_TEN_STEPS * (gate.abs() * up.abs())
    assert ((found - wanted).abs() <= bound).all()


@pytest.mark.parametrize("numbers", ["int8", "e4m3"])
@pytest.mark.parametrize("activation", ["silu", "gelu_tanh"])
def test_gate_rounds_as_if_the_row_had_been_written(
    activation: Activation, numbers: Numbers
) -> None:
    x = torch.randn(4, 2 * 40, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    found = value_of(gated_rounded(x, activation, numbers))
    assert torch.equal(found, round_input(gated(x, activation).cpu(), InputRounding(numbers)))


@pytest.mark.parametrize("numbers", ["int8", "e4m3"])
def test_what_is_no_number_stays_none(numbers: Numbers) -> None:
    """One of a row makes its scale none, so that no product of the row is a number."""
    x = torch.ones(2, 2 * 40)
    x[1, 5] = float("nan")
    rounded = gated_rounded(x.to(DEVICE), "silu", numbers)
    assert torch.isnan(rounded.scale.cpu()).tolist() == [False, True]
