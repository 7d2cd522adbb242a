"""GPTQ checkpoints (AutoGPTQ layouts v1 and v2) of 2, 3, 4 and 8 bits.

For a module X of shape [out, in] at b bits, groups = ceil(in / group_size):

    X.qweight  int32 [ceil(in*b/32), out]      unsigned codes, packed along the input dimension
    X.qzeros   int32 [groups, ceil(out*b/32)]  zero points, packed along the output dimension
    X.scales   float16 or bfloat16 [groups, out]
    X.g_idx    int32 [in]                      group of each input column

v1 stores zero - 1, v2 stores zero. w = (code - zero) * scale with unsigned codes; canonical signed
codes and zero points are 2**(b-1) less. Source: AutoGPTQ and its successors.
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
    Locate,
    PackedWeight,
    as_codes,
    as_unsigned,
    group_index_or_none,
    parts_of,
    require_part,
    require_shape,
    require_usable_scale,
)
from quant.format.errors import FileFormatError, UnsupportedModelError
from quant.format.packing import pack, packed_words, unpack
from quant.format.scheme import IntScheme, PerChannel, PerGroup
from quant.format.stored import StoredIntegers, dense_rows
from quant.format.tensor import QuantizedTensor

_PARTS = ("qweight", "qzeros", "scales", "g_idx")
READABLE_BITS = (2, 3, 4, 8)


def encode_weight(
    module: str, tensor: QuantizedTensor, version: int
) -> dict[str, npt.NDArray[Any]]:
    """The stored tensors of one weight in layout v1 or v2, by name.

    Raises UnsupportedModelError for zero points that v1 cannot hold (an unsigned 0, stored as -1).
    """
    bits, (rows, columns) = tensor.scheme.num_bits, tensor.shape
    assert isinstance(tensor.scheme, IntScheme)
    zero = tensor.zero_point
    if zero is None:
        zero = np.zeros((rows, tensor.scheme.groups(columns)), dtype=np.int8)
    stored_zero = as_unsigned(zero, bits)
    if version == 1:
        if (stored_zero == 0).any():
            raise UnsupportedModelError(
                f"weight '{module}': GPTQ v1 cannot hold a zero point of {-(1 << (bits - 1))}"
            )
        stored_zero = stored_zero - np.uint8(1)
    stored = {
        "qweight": np.ascontiguousarray(pack(as_unsigned(tensor.codes, bits), bits).T),
        "qzeros": pack(np.ascontiguousarray(stored_zero.T), bits, axis=1),
        "scales": np.ascontiguousarray(tensor.scale.T),
        "g_idx": tensor.column_groups(),
    }
    return {f"{module}.{suffix}": array for suffix, array in stored.items()}


class GptqCodec:
    """Reads the weights of a GPTQ checkpoint; implements `WeightCodec`."""

    suffixes = frozenset(_PARTS)

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self._where = where
        self._scheme = _scheme(config, where)
        self._version = _version(config, where)
        self._desc_act = bool(config.get("desc_act", False))

    def find(self, headers: Headers, load: LoadRaw) -> list[PackedWeight]:
        modules = [n.removesuffix(".qweight") for n in headers if n.endswith(".qweight")]
        return [self._describe(module, headers) for module in modules]

    def decode(self, weight: PackedWeight, load: LoadRaw) -> QuantizedTensor:
        fault, scheme = Fault(self._where, weight.module), self._scheme
        columns = weight.shape[1]
        # Turned while packed: a transpose of words moves a fraction of the elements.
        words = np.ascontiguousarray(load(weight.parts["qweight"]).T)
        codes = as_codes(unpack(words, scheme.num_bits, columns), scheme.num_bits)
        scale, zero_point = self._scales(weight, load, fault)
        index = self._group_index(weight, load, fault)
        return QuantizedTensor(scheme, codes, scale, zero_point, group_index=index)

    def stored(self, weight: PackedWeight, load: LoadRaw, locate: Locate) -> StoredIntegers | None:
        """See StoresIntegers; None where columns are in an order of their own."""
        fault = Fault(self._where, weight.module)
        if self._group_index(weight, load, fault) is not None:
            return None
        words = load(weight.parts["qweight"]).view(np.uint8)
        rows = dense_rows(words, weight.scheme.num_bits, weight.shape[1], turned=True)
        if rows is None:
            return None
        scale, zero_point = self._scales(weight, load, fault)
        return StoredIntegers(self._scheme, weight.shape, rows, scale, zero_point)

    def _scales(
        self, weight: PackedWeight, load: LoadRaw, fault: Fault
    ) -> tuple[npt.NDArray[Any], npt.NDArray[np.int8] | None]:
        """Scales and zero points in canonical form."""
        scale = np.ascontiguousarray(load(weight.parts["scales"]).T)
        require_usable_scale(scale, fault)
        bits, rows = self._scheme.num_bits, weight.shape[0]
        zeros = unpack(load(weight.parts["qzeros"]), bits, rows, axis=1).T
        return scale, self._zero_point(zeros, self._scheme, fault)

    def _describe(self, module: str, headers: Headers) -> PackedWeight:
        fault, parts = Fault(self._where, module), parts_of(module, headers, _PARTS)
        bits = self._scheme.num_bits
        words = require_part(headers, parts, "qweight", ("int32",), fault)
        if len(words) != 2 or 0 in words or words[0] * 32 % bits:
            raise fault.malformed(f"'qweight' has shape {list(words)}")
        columns, rows = words[0] * 32 // bits, words[1]
        groups = self._scheme.groups(columns)
        scales = require_part(headers, parts, "scales", FLOAT_DTYPES, fault)
        require_shape(scales, (groups, rows), "scales", fault)
        zeros = require_part(headers, parts, "qzeros", ("int32",), fault)
        require_shape(zeros, (groups, packed_words(rows, bits)), "qzeros", fault)
        if "g_idx" in parts:
            index = require_part(headers, parts, "g_idx", ("int32", "int64"), fault)
            require_shape(index, (columns,), "g_idx", fault)
        elif self._desc_act:
            raise fault.malformed("the config says desc_act, but 'g_idx' is missing")
        return PackedWeight(module, (rows, columns), self._scheme, parts)

    def _zero_point(
        self, stored: npt.NDArray[np.uint8], scheme: IntScheme, fault: Fault
    ) -> npt.NDArray[np.int8] | None:
        limit = 1 << scheme.num_bits
        zeros = stored.astype(np.int16) + (1 if self._version == 1 else 0)
        if scheme.symmetric:
            if (zeros != limit // 2).any():
                raise fault.malformed(f"is symmetric, but has zero points other than {limit // 2}")
            return None
        if (zeros >= limit).any():
            raise fault.malformed(f"a zero point is {limit}, outside 0..{limit - 1}")
        return np.ascontiguousarray(zeros - limit // 2).astype(np.int8)

    def _group_index(
        self, weight: PackedWeight, load: LoadRaw, fault: Fault
    ) -> npt.NDArray[np.int32] | None:
        name = weight.parts.get("g_idx")
        if name is None:
            return None
        index = load(name)
        # Early writers left zeros here when columns were in their own order.
        if not self._desc_act and not index.any():
            return None
        return group_index_or_none(index, weight.scheme, fault)


def _scheme(config: Mapping[str, Any], where: str) -> IntScheme:
    bits, size, symmetric = config.get("bits"), config.get("group_size"), config.get("sym", True)
    if type(bits) is not int or bits not in READABLE_BITS:
        raise UnsupportedModelError(
            f"{where}: GPTQ with bits {bits!r} is not supported; readable are 2, 3, 4 and 8"
        )
    if type(size) is not int or (size <= 0 and size != -1):
        raise FileFormatError(where, f"quantization_config.group_size is {size!r}")
    if not isinstance(symmetric, bool):
        raise FileFormatError(where, f"quantization_config.sym is {symmetric!r}")
    return IntScheme(bits, symmetric, PerChannel() if size == -1 else PerGroup(size))


def _version(config: Mapping[str, Any], where: str) -> int:
    for key in ("dynamic", "is_marlin_format"):
        if config.get(key):
            raise UnsupportedModelError(f"{where}: GPTQ with '{key}' is not supported")
    if config.get("pack_dtype", "int32") != "int32":
        raise UnsupportedModelError(f"{where}: GPTQ packed in {config['pack_dtype']!r}")
    versions = {"gptq": 1, "gptq_v2": 2}
    layout = config.get("checkpoint_format", "gptq")
    if not isinstance(layout, str) or layout not in versions:
        raise UnsupportedModelError(
            f"{where}: GPTQ checkpoint_format {layout!r} is not supported; "
            "readable are gptq and gptq_v2"
        )
    return versions[layout]
