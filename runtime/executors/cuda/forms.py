"""What a weight is held as on the device, and how it multiplies."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from runtime.kernels.triton.norm import round_groups, round_rows
from runtime.kernels.triton.rounded import Numbers, RoundedRows, RoundedWeight, rounded_matmul
from runtime.kernels.triton.weight_only import PackedInteger, weight_only_matmul

Rows = Tensor | RoundedRows
"""A linear's input: [rows, in] as it is, or rounded per row already."""


class Form(Protocol):
    """A weight [out, in] that multiplies."""

    @property
    def rounds(self) -> Numbers | None:
        """What the input is rounded to before the product; None leaves it as it is."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        ...

    def multiply(self, x: Rows, dtype: torch.dtype, bias: Tensor | None = None) -> Tensor:
        """x @ weight.T + bias [rows, out], of `dtype`."""
        ...


@dataclass(frozen=True, eq=False)
class Dense:
    """weight: [out, in] of the executor's dtype; multiplied by torch."""

    weight: Tensor
    rounds: None = None

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def multiply(self, x: Rows, dtype: torch.dtype, bias: Tensor | None = None) -> Tensor:
        assert isinstance(x, Tensor)
        return torch.nn.functional.linear(x, self.weight, bias)


@dataclass(frozen=True, eq=False)
class Packed:
    """Integers of 4 or 8 bits under inputs as they are, or rounded per row."""

    weight: PackedInteger
    rounds: Numbers | None = None

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def multiply(self, x: Rows, dtype: torch.dtype, bias: Tensor | None = None) -> Tensor:
        if self.rounds is not None and isinstance(x, Tensor):
            x = round_rows(x, self.rounds)
        return weight_only_matmul(x, self.weight, bias, dtype=dtype)


@dataclass(frozen=True, eq=False)
class Rounded:
    """int8 or e4m3 on both sides."""

    weight: RoundedWeight

    @property
    def rounds(self) -> Numbers:
        return "int8" if self.weight.codes.dtype == torch.int8 else "e4m3"

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def multiply(self, x: Rows, dtype: torch.dtype, bias: Tensor | None = None) -> Tensor:
        rows = x if isinstance(x, RoundedRows) else round_rows(x, self.rounds)
        if _torch_is_as_fast(rows):
            return _scaled_product(rows, self.weight, dtype, bias)
        return rounded_matmul(rows, self.weight, dtype, bias)


@dataclass(frozen=True, eq=False)
class RoundedInGroups:
    """The same numbers on both sides, with scales for each `group` columns of either."""

    weight: RoundedWeight
    numbers: Numbers
    group: int
    rounds: None = None
    """No row is rounded by one scale: norms and gates leave it to this."""

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def multiply(self, x: Rows, dtype: torch.dtype, bias: Tensor | None = None) -> Tensor:
        assert isinstance(x, Tensor)
        rows = round_groups(x, self.numbers, self.group)
        return rounded_matmul(rows, self.weight, dtype, bias, group=self.group)


LEAST_ROWS_OF_TORCH = 64
"""From here on torch's own product of e4m3 is used, where the GPU has it (Hopper and later)."""


def _torch_is_as_fast(x: RoundedRows) -> bool:
    codes = x.codes
    if codes.dtype != torch.float8_e4m3fn or len(codes) < LEAST_ROWS_OF_TORCH:
        return False
    return codes.is_cuda and torch.cuda.get_device_capability(codes.device) >= (9, 0)


def _scaled_product(
    x: RoundedRows, weight: RoundedWeight, dtype: torch.dtype, bias: Tensor | None
) -> Tensor:
    """torch's product with a scale per row of either side, which gives bfloat16 alone."""
    product = torch._scaled_mm(
        x.codes,
        weight.codes.T,
        scale_a=x.scale[:, None],
        scale_b=weight.scale[None, :],
        bias=None if bias is None else bias.to(torch.bfloat16),
        out_dtype=torch.bfloat16,
    )
    return product.to(dtype)
