"""What a weight is held as on the device, and how it multiplies."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from runtime.kernels.triton.experts import Sent, dense_experts
from runtime.kernels.triton.norm import round_groups, round_rows
from runtime.kernels.triton.rounded import Numbers, RoundedRows, RoundedWeight, rounded_matmul
from runtime.kernels.triton.weight_only import PackedInteger, weight_only_matmul

Rows = Tensor | RoundedRows
"""A linear's input: [rows, in] as it is, or rounded per row already."""


class Form(Protocol):
    """A weight [out, in] that multiplies, or those of all experts below each other."""

    @property
    def rounds(self) -> Numbers | None:
        """What the input is rounded to before the product; None leaves it as it is."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        ...

    def multiply(
        self, x: Rows, dtype: torch.dtype, bias: Tensor | None = None, sent: Sent | None = None
    ) -> Tensor:
        """x @ weight.T + bias [rows, out], of `dtype`; with `sent`, each pair's row by the matrix
        of its expert [pairs, out], without a bias."""
        ...


@dataclass(frozen=True, eq=False)
class Dense:
    """weight: [out, in] of the executor's dtype; multiplied by torch."""

    weight: Tensor
    rounds: None = None

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def multiply(
        self, x: Rows, dtype: torch.dtype, bias: Tensor | None = None, sent: Sent | None = None
    ) -> Tensor:
        assert isinstance(x, Tensor)
        if sent is not None:
            return dense_experts(x, self.weight, sent)
        return torch.nn.functional.linear(x, self.weight, bias)


@dataclass(frozen=True, eq=False)
class Packed:
    """Integers of 4 or 8 bits under inputs as they are, or rounded per row. order: int64 [in], the
    input columns as the groups have them; None for groups of neighbours."""

    weight: PackedInteger
    rounds: Numbers | None = None
    order: Tensor | None = None

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + (0 if self.order is None else self.order.nbytes)

    def multiply(
        self, x: Rows, dtype: torch.dtype, bias: Tensor | None = None, sent: Sent | None = None
    ) -> Tensor:
        if self.order is not None:
            x = _columns(x, self.order)
        if self.rounds is not None and isinstance(x, Tensor):
            x = round_rows(x, self.rounds)
        return weight_only_matmul(x, self.weight, bias, dtype=dtype, sent=sent)


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

    def multiply(
        self, x: Rows, dtype: torch.dtype, bias: Tensor | None = None, sent: Sent | None = None
    ) -> Tensor:
        rows = x if isinstance(x, RoundedRows) else round_rows(x, self.rounds)
        if sent is None and _torch_is_as_fast(rows, self.weight, dtype):
            return _scaled_product(rows, self.weight, bias)
        return rounded_matmul(rows, self.weight, dtype, bias, sent=sent)


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

    def multiply(
        self, x: Rows, dtype: torch.dtype, bias: Tensor | None = None, sent: Sent | None = None
    ) -> Tensor:
        assert isinstance(x, Tensor)
        rows = round_groups(x, self.numbers, self.group)
        return rounded_matmul(rows, self.weight, dtype, bias, group=self.group, sent=sent)


def stack(forms: Sequence[Form]) -> Form | None:
    """The matrices of experts below each other; None where they are not held alike."""
    first = forms[0]
    if any(_kind(form) != _kind(first) for form in forms):
        return None
    match first:
        case Dense():
            return Dense(torch.cat([form.weight for form in forms if isinstance(form, Dense)]))
        case Packed() if first.order is None:
            packed = [form.weight for form in forms if isinstance(form, Packed)]
            return replace(first, weight=_stack_packed(packed))
        case Rounded() | RoundedInGroups():
            parts = [form.weight for form in forms if isinstance(form, Rounded | RoundedInGroups)]
            codes = torch.cat([part.codes.view(torch.int8) for part in parts])
            scale = torch.cat([part.scale for part in parts])
            return replace(first, weight=RoundedWeight(codes.view(parts[0].codes.dtype), scale))
        case _:
            return None


def _kind(form: Form) -> tuple[object, ...]:
    """Equal for matrices that one kernel multiplies."""
    if isinstance(form, Packed):
        held = form.weight
        parts = (held.zero_point is None, held.minimum is None, form.order is None)
        return "packed", form.rounds, held.num_bits, held.tile_size, held.halves, *parts
    if isinstance(form, RoundedInGroups):
        return "groups", form.numbers, form.group
    return (type(form).__name__, form.rounds)


def _stack_packed(parts: Sequence[PackedInteger]) -> PackedInteger:
    first = parts[0]

    def below(pieces: Sequence[Tensor | None]) -> Tensor | None:
        found = [piece for piece in pieces if piece is not None]
        return torch.cat(found) if found else None

    return replace(
        first,
        codes=torch.cat([part.codes for part in parts]),
        scale=torch.cat([part.scale for part in parts]),
        zero_point=below([part.zero_point for part in parts]),
        minimum=below([part.minimum for part in parts]),
    )


def _columns(x: Rows, order: Tensor) -> Rows:
    if isinstance(x, Tensor):
        return x.index_select(1, order)
    # Bytes, for torch moves no e4m3 numbers about.
    codes = x.codes.view(torch.int8).index_select(1, order)
    return RoundedRows(codes.view(x.codes.dtype), x.scale)


LEAST_ROWS_OF_TORCH = 64
"""From here on torch's own product of e4m3 is used, where the GPU has it (Hopper and later)."""
_TORCH_DIVISOR = 16
"""Of both sizes of a weight that torch multiplies so."""


def _torch_is_as_fast(x: RoundedRows, weight: RoundedWeight, dtype: torch.dtype) -> bool:
    """It gives bfloat16 alone."""
    codes = x.codes
    if codes.dtype != torch.float8_e4m3fn or len(codes) < LEAST_ROWS_OF_TORCH:
        return False
    if dtype != torch.bfloat16 or any(size % _TORCH_DIVISOR for size in weight.codes.shape):
        return False
    return codes.is_cuda and torch.cuda.get_device_capability(codes.device) >= (9, 0)


def _scaled_product(x: RoundedRows, weight: RoundedWeight, bias: Tensor | None) -> Tensor:
    """torch's product with a scale per row of either side."""
    return torch._scaled_mm(
        x.codes,
        weight.codes.T,
        scale_a=x.scale[:, None],
        scale_b=weight.scale[None, :],
        bias=bias,
        out_dtype=torch.bfloat16,
    )
