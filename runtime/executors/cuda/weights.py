"""From a WeightSource to the device, one tensor at a time: the host never holds more than one."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from compile.input_rounding import input_rounding
from quant.format.errors import UnsupportedModelError
from quant.format.scheme import (
    ActivationScheme,
    CodebookScheme,
    IntScheme,
    PerBlock,
    PerChannel,
    PerGroup,
    PerTensor,
)
from quant.format.tensor import FloatArray, QuantizedTensor, Weight, WeightSource
from runtime.executors.cuda.forms import Dense, Form, Packed, Rounded, RoundedInGroups
from runtime.kernels.triton.rounded import Numbers, RoundedWeight
from runtime.kernels.triton.weight_only import pack_integer

GROUPS = (16, 32, 64, 128, 256)
"""Group sizes that the kernels take."""
ROUNDED_GROUPS = (32, 64, 128)
"""Of products whose inputs are rounded in groups as well, e.g. FP8 in blocks of 128 x 128."""
WHOLE_ROW_GROUP = 128
"""A row under one scale is cut into groups of this size, which all have it."""

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

    def _made(self, weights: Sequence[Weight], names: Sequence[str]) -> Form:
        quantized = [weight for weight in weights if isinstance(weight, QuantizedTensor)]
        if len(quantized) < len(weights):
            return Dense(torch.cat([dense(weight, self.placement) for weight in weights]))
        roundings = {
            input_rounding(name, each) for name, each in zip(names, quantized, strict=True)
        }
        first = quantized[0]
        packable = all(_can_be_packed(weight) for weight in quantized)
        if roundings != {None}:
            group = _rounded_group(names[0], first)
            if group is not None:
                return self._in_groups(quantized, group)
            numbers = _numbers_per_token(names[0], first)
            if packable and not _whole_rows_of_8_bits(first):
                return self._packed(quantized, numbers)
            return self._rounded(quantized, names[0])
        if packable:
            return self._packed(quantized)
        _log.warning(
            "%s and others stored as %s are held as %s",
            names[0],
            first.scheme,
            self.placement.dtype,
        )
        return Dense(torch.cat([dense(weight, self.placement) for weight in weights]))

    def _packed(self, weights: Sequence[QuantizedTensor], rounds: Numbers | None = None) -> Form:
        device, scheme = self.placement.device, weights[0].scheme
        codes = torch.cat([_tensor(weight.codes, device) for weight in weights])
        columns = codes.shape[1]
        size = _group_size(weights[0])
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
        return Packed(pack_integer(codes, scale, zeros, scheme.num_bits, size, least), rounds)

    def _rounded(self, weights: Sequence[QuantizedTensor], name: str) -> Form:
        for weight in weights:
            _check_rounded(name, weight)
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


def _can_be_packed(weight: QuantizedTensor) -> bool:
    """Integers in regular groups that the kernels know."""
    if not isinstance(weight.scheme, IntScheme) or weight.group_index is not None:
        return False
    held = weight.minimum is None or weight.scheme.num_bits < 8
    return held and _group_size(weight) in GROUPS


def _group_size(weight: QuantizedTensor) -> int:
    whole = isinstance(weight.scheme.granularity, PerChannel | PerTensor)
    return WHOLE_ROW_GROUP if whole else weight.scheme.group_size(weight.shape[1])


def _for_each_group(numbers: FloatArray, rows: int, groups: int) -> FloatArray:
    """[rows, groups], where one number may stand for a row, or for the whole tensor."""
    return np.broadcast_to(numbers, (rows, groups))


def _whole_rows_of_8_bits(weight: QuantizedTensor) -> bool:
    """What the product of rounded rows takes as it is."""
    whole = isinstance(weight.scheme.granularity, PerChannel | PerTensor)
    return whole and weight.scheme.num_bits == 8 and weight.scheme.symmetric


def _numbers_per_token(name: str, weight: QuantizedTensor) -> Numbers:
    """What inputs are rounded to, with one scale per token made as they come.

    Raises UnsupportedModelError for any other way.
    """
    rounding = input_rounding(name, weight)
    assert rounding is not None
    if rounding.fixed is not None or rounding.group or rounding.numbers == "e2m1":
        raise _unsupported(name, weight)
    return rounding.numbers


def _rounded_group(name: str, weight: QuantizedTensor) -> int | None:
    """The columns under one scale, where both sides are the same 8-bit numbers in such groups."""
    rounding, scheme = input_rounding(name, weight), weight.scheme
    assert rounding is not None
    own = "int8" if isinstance(scheme, IntScheme) else scheme.codebook
    alike = own == rounding.numbers and scheme.num_bits == 8 and scheme.symmetric
    made = rounding.fixed is None and rounding.scales == "float"
    plain = weight.group_index is None and isinstance(scheme.granularity, PerGroup | PerBlock)
    size = scheme.group_size(weight.shape[1])
    fits = size == rounding.group and size in ROUNDED_GROUPS
    return size if alike and made and plain and fits else None


def _check_rounded(name: str, weight: QuantizedTensor) -> None:
    """Both sides of the product are the same numbers, and every row has one scale."""
    numbers, scheme = _numbers_per_token(name, weight), weight.scheme
    own = "int8" if isinstance(scheme, IntScheme) else scheme.codebook
    if own != numbers or not _whole_rows_of_8_bits(weight):
        raise _unsupported(name, weight)


def _unsupported(name: str, weight: QuantizedTensor) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"tensor {name} is stored as {weight.scheme}, which the cuda backend does not multiply; it "
        "rounds inputs per token to int8 or e4m3, for integers in groups or for weights of the "
        "same 8-bit numbers with a scale per row, or both in the same groups of 32 to 128: use "
        "--backend torch"
    )
