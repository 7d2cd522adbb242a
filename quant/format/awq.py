"""AWQ checkpoints in the "gemm" layout, 4 bits.

For a module X of shape [out, in]:

    X.qweight  int32 [in, out/8]         unsigned codes, packed along the output dimension
    X.qzeros   int32 [in/group, out/8]   zero points as they are (nothing subtracted)
    X.scales   float16 [in/group, out]

Nibble i of a word holds column 8*word + ORDER[i]. w = (code - zero) * scale. Source: AutoAWQ.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from quant.format.codec import (
    FLOAT_DTYPES,
    Fault,
    Headers,
    LoadRaw,
    PackedWeight,
    as_codes,
    as_unsigned,
    parts_of,
    require_part,
    require_shape,
    require_usable_scale,
)
from quant.format.errors import FileFormatError, UnsupportedModelError
from quant.format.scheme import IntScheme, PerChannel, PerGroup
from quant.format.tensor import QuantizedTensor

ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_PARTS = ("qweight", "qzeros", "scales")
_BITS = 4


def pack_interleaved(codes: npt.NDArray[np.uint8]) -> npt.NDArray[np.int32]:
    """[out, in] nibbles -> [in, out / 8] words."""
    eights = codes.reshape(codes.shape[0] // 8, 8, codes.shape[1])
    words = np.zeros((eights.shape[0], eights.shape[2]), dtype=np.uint32)
    for i, column in enumerate(ORDER):
        words |= eights[:, column].astype(np.uint32) << np.uint32(_BITS * i)
    return np.ascontiguousarray(words.T).view(np.int32)


def unpack_interleaved(words: npt.NDArray[np.int32]) -> npt.NDArray[np.uint8]:
    """[in, out / 8] words -> [out, in] nibbles."""
    turned = np.ascontiguousarray(words.T).view(np.uint32)
    eights = np.empty((turned.shape[0], 8, turned.shape[1]), dtype=np.uint8)
    for i, column in enumerate(ORDER):
        eights[:, column] = (turned >> np.uint32(_BITS * i)) & np.uint32(15)
    return eights.reshape(-1, turned.shape[1])


def encode_weight(module: str, tensor: QuantizedTensor) -> dict[str, npt.NDArray[Any]]:
    """The stored tensors of one 4-bit weight, by name; rows must be a multiple of 8."""
    assert tensor.scheme.num_bits == _BITS
    assert tensor.group_index is None
    assert tensor.shape[0] % 8 == 0
    zero = tensor.zero_point
    if zero is None:
        zero = np.zeros(tensor.scale.shape, dtype=np.int8)
    stored = {
        "qweight": pack_interleaved(as_unsigned(tensor.codes, _BITS)),
        "qzeros": pack_interleaved(as_unsigned(zero, _BITS)),
        "scales": np.ascontiguousarray(tensor.scale.T),
    }
    return {f"{module}.{suffix}": array for suffix, array in stored.items()}


class AwqCodec:
    """Reads the weights of an AWQ checkpoint; implements `WeightCodec`."""

    suffixes = frozenset(_PARTS)

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self._where = where
        self._scheme = _scheme(config, where)

    def find(self, headers: Headers, load: LoadRaw) -> list[PackedWeight]:
        modules = [n.removesuffix(".qweight") for n in headers if n.endswith(".qweight")]
        return [self._describe(module, headers) for module in modules]

    def decode(self, weight: PackedWeight, load: LoadRaw) -> QuantizedTensor:
        fault = Fault(self._where, weight.module)
        codes = as_codes(unpack_interleaved(load(weight.parts["qweight"])), _BITS)
        scale = np.ascontiguousarray(load(weight.parts["scales"]).T)
        require_usable_scale(scale, fault)
        zero_point = None
        if "qzeros" in weight.parts:
            zero_point = as_codes(unpack_interleaved(load(weight.parts["qzeros"])), _BITS)
        if weight.scheme.symmetric and zero_point is not None:
            if zero_point.any():
                raise fault.malformed("is symmetric, but has zero points other than 8")
            zero_point = None
        return QuantizedTensor(weight.scheme, codes, scale, zero_point)

    def _describe(self, module: str, headers: Headers) -> PackedWeight:
        fault, parts = Fault(self._where, module), parts_of(module, headers, _PARTS)
        words = require_part(headers, parts, "qweight", ("int32",), fault)
        if len(words) != 2 or 0 in words:
            raise fault.malformed(f"'qweight' has shape {list(words)}")
        columns, rows = words[0], words[1] * 8
        if columns % self._scheme.group_size(columns):
            size = self._scheme.group_size(columns)
            raise fault.malformed(f"{columns} columns do not divide into groups of {size}")
        groups = self._scheme.groups(columns)
        scales = require_part(headers, parts, "scales", FLOAT_DTYPES, fault)
        require_shape(scales, (groups, rows), "scales", fault)
        if not self._scheme.symmetric or "qzeros" in parts:
            zeros = require_part(headers, parts, "qzeros", ("int32",), fault)
            require_shape(zeros, (groups, rows // 8), "qzeros", fault)
        return PackedWeight(module, (rows, columns), self._scheme, parts)


def _scheme(config: Mapping[str, Any], where: str) -> IntScheme:
    bits = config.get("bits", config.get("w_bit"))
    size = config.get("group_size", config.get("q_group_size"))
    version = str(config.get("version", "gemm")).lower()
    if bits != _BITS or version != "gemm":
        raise UnsupportedModelError(
            f"{where}: AWQ version {version!r} with {bits!r} bits is not supported; "
            "readable is 'gemm' with 4 bits"
        )
    if type(size) is not int or (size <= 0 and size != -1):
        raise FileFormatError(where, f"quantization_config.group_size is {size!r}")
    # A file whose zero points are all 8 may say so, and is then as symmetric as one without them.
    symmetric = not config.get("zero_point", True) or config.get("sym") is True
    return IntScheme(_BITS, symmetric, PerChannel() if size == -1 else PerGroup(size))
