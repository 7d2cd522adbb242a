"""From a WeightSource to the device: the host holds no more than the tensors of one product."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compile.input_rounding import input_rounding
from quant.format.errors import UnsupportedModelError
from quant.format.scheme import ActivationScheme, CodebookScheme, PerGroup
from quant.format.tensor import FloatArray, QuantizedTensor, Weight, WeightSource
from runtime.executors.cuda.forms import Dense, Form, Packed, Rounded, RoundedInGroups, stack
from runtime.executors.cuda.kinds import (
    can_be_packed,
    check_rounded,
    column_order,
    group_size,
    numbers_per_token,
    one_order,
    rounded_group,
    whole_rows_of_8_bits,
)
from runtime.kernels.triton.rounded import Numbers, RoundedWeight
from runtime.kernels.triton.weight_only import pack_integer

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Placement:
    """Where weights go, and as which numbers those go that are not kept as integers."""

    device: torch.device
    dtype: torch.dtype


class DeviceWeights:
    """Loads, joins and packs; what two ops name is held once."""

    def __init__(self, source: WeightSource, placement: Placement) -> None:
        self._source = source
        self.placement = placement
        self._forms: dict[tuple[str, ...], Form] = {}
        self._dequantized: set[str] = set()

    @property
    def nbytes(self) -> int:
        """Bytes of all weights on the device."""
        return sum(form.nbytes for form in self._forms.values())

    def form(self, names: Sequence[str]) -> Form:
        """The named weights below each other, as one matrix. They can be joined: `joins`."""
        key = tuple(names)
        if key not in self._forms:
            self._forms[key] = self._made([self._source.load(name) for name in names], key)
        return self._forms[key]

    def stacked(self, names: Sequence[Sequence[str]]) -> Form:
        """The weights of several experts below each other, each made of those that `names` has for
        it. What is not stored alike is dequantized, with a line in the log.

        Raises UnsupportedModelError where inputs are rounded as well.
        """
        key = tuple(name for each in names for name in each)
        if key not in self._forms:
            self._forms[key] = self._stack(names, key)
        return self._forms[key]

    def joins(self, first: str, second: str) -> bool:
        """Whether two weights of the same input can be one matrix."""
        return self._source.scheme(first) == self._source.scheme(second)

    def rounds(self, name: str) -> Numbers | None:
        """What the input of a weight is rounded to, from its scheme alone."""
        activation = getattr(self._source.scheme(name), "activation", None)
        if not isinstance(activation, ActivationScheme):
            return None
        if isinstance(activation.granularity, PerGroup):
            return None
        return None if activation.numbers == "e2m1" else activation.numbers

    def vector(self, name: str, offset: float = 0.0) -> Tensor:
        """float32 [size]: a norm's weight; offset is added."""
        weight = self._source.load(name)
        assert not isinstance(weight, QuantizedTensor)
        return _tensor(np.asarray(weight, np.float32) + np.float32(offset), self.placement.device)

    def bias(self, names: Sequence[str | None], sizes: Sequence[int]) -> Tensor | None:
        """The biases of joined weights, zero where one has none; None where none has."""
        if all(name is None for name in names):
            return None
        placement = self.placement
        parts = [
            torch.zeros(size, device=placement.device) if name is None else self.vector(name)
            for name, size in zip(names, sizes, strict=True)
        ]
        return torch.cat(parts).to(placement.dtype)

    def table(self, name: str) -> Tensor:
        """[rows, columns] of the executor's dtype: embeddings, of which rows are taken."""
        form = self._forms.get((name,))
        if isinstance(form, Dense):
            return form.weight
        weight = dense(self._source.load(name), self.placement)
        self._forms.setdefault((name,), Dense(weight))
        return weight

    def _stack(self, names: Sequence[Sequence[str]], key: Sequence[str]) -> Form:
        schemes = {self._source.scheme(name) for name in key}
        if len(schemes) == 1:
            forms = [self._made([self._source.load(n) for n in each], each) for each in names]
            found = stack(forms)
            if found is not None:
                return found
        for name in key:
            if getattr(self._source.scheme(name), "activation", None) is not None:
                raise UnsupportedModelError(
                    f"tensor {name} is not stored as those of the other experts beside it, and "
                    "asks for rounded inputs, which the cuda backend does not multiply: use "
                    "--backend torch"
                )
        self._say_dequantized(key[0], " or ".join(sorted(map(str, schemes))))
        return Dense(torch.cat([dense(self._source.load(name), self.placement) for name in key]))

    def _say_dequantized(self, name: str, scheme: str) -> None:
        """Once for each way to store weights."""
        if scheme not in self._dequantized:
            self._dequantized.add(scheme)
            _log.warning(
                "%s and all others stored as %s are held as %s", name, scheme, self.placement.dtype
            )

    def _made(self, weights: Sequence[Weight], names: Sequence[str]) -> Form:
        quantized = [weight for weight in weights if isinstance(weight, QuantizedTensor)]
        if len(quantized) < len(weights):
            return Dense(torch.cat([dense(weight, self.placement) for weight in weights]))
        roundings = {
            input_rounding(name, each) for name, each in zip(names, quantized, strict=True)
        }
        first = quantized[0]
        packable = all(can_be_packed(weight) for weight in quantized) and one_order(quantized)
        if roundings != {None}:
            group = rounded_group(names[0], first)
            if group is not None:
                return self._in_groups(quantized, group)
            numbers = numbers_per_token(names[0], first)
            if packable and not whole_rows_of_8_bits(first):
                return self._packed(quantized, numbers)
            return self._rounded(quantized, names[0])
        if packable:
            return self._packed(quantized)
        self._say_dequantized(names[0], str(first.scheme))
        return Dense(torch.cat([dense(weight, self.placement) for weight in weights]))

    def _packed(self, weights: Sequence[QuantizedTensor], rounds: Numbers | None = None) -> Form:
        device, scheme = self.placement.device, weights[0].scheme
        codes = torch.cat([_tensor(weight.codes, device) for weight in weights])
        by_group = column_order(weights[0])
        order = None if by_group is None else _tensor(by_group, device)
        if order is not None:
            codes = codes.index_select(1, order)
        columns = codes.shape[1]
        size = group_size(weights[0])
        groups = -(-columns // size)

        def per_group(parts: Sequence[FloatArray | None]) -> Tensor | None:
            rows = [
                _tensor(_for_each_group(part, len(weight.codes), groups), device)
                for part, weight in zip(parts, weights, strict=True)
                if part is not None
            ]
            return torch.cat(rows) if rows else None

        scale = per_group([weight.scale for weight in weights])
        assert scale is not None
        zeros = per_group([weight.zero_point for weight in weights])
        least = per_group([weight.minimum for weight in weights])
        packed = pack_integer(codes, scale, zeros, scheme.num_bits, size, least)
        return Packed(packed, rounds, order)

    def _rounded(self, weights: Sequence[QuantizedTensor], name: str) -> Form:
        for weight in weights:
            check_rounded(name, weight)
        device = self.placement.device
        codes = torch.cat([_tensor(weight.codes, device) for weight in weights])
        if isinstance(weights[0].scheme, CodebookScheme):
            codes = codes.view(torch.float8_e4m3fn)
        scales = [_tensor(weight.effective_scale()[:, 0].copy(), device) for weight in weights]
        return Rounded(RoundedWeight(codes.contiguous(), torch.cat(scales)))

    def _in_groups(self, weights: Sequence[QuantizedTensor], group: int) -> Form:
        device, scheme = self.placement.device, weights[0].scheme
        codes = torch.cat([_tensor(weight.codes, device) for weight in weights])
        numbers: Numbers = "int8"
        if isinstance(scheme, CodebookScheme):
            codes, numbers = codes.view(torch.float8_e4m3fn), "e4m3"
        scales = torch.cat([_tensor(weight.effective_scale(), device) for weight in weights])
        return RoundedInGroups(RoundedWeight(codes.contiguous(), scales), numbers, group)


def dense(weight: Weight, placement: Placement) -> Tensor:
    """The numbers [out, in] in the executor's dtype."""
    if isinstance(weight, QuantizedTensor):
        return _tensor(weight.dequantize(), placement.device).to(placement.dtype)
    return _tensor(weight, placement.device).to(placement.dtype)


def _tensor(array: FloatArray, device: torch.device) -> Tensor:
    """A copy on the device; torch reads bfloat16 through its bits."""
    array = np.ascontiguousarray(array)
    if array.dtype.name == "bfloat16":
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16).to(device)
    return torch.from_numpy(array.copy()).to(device)


def _for_each_group(numbers: FloatArray, rows: int, groups: int) -> FloatArray:
    """[rows, groups], where one number may stand for a row, or for the whole tensor."""
    return np.broadcast_to(numbers, (rows, groups))
