"""compressed-tensors: pack-quantized (2 to 8 bits) both ways; int-quantized and naive read.

pack-quantized stores, for a module X of shape [out, in] at b bits:

    X.weight_packed      int32 [out, ceil(in*b/32)]      code + 2**(b-1), packed along columns
    X.weight_scale       float [out, in/g] or [out, 1]
    X.weight_shape       int64 [2]                       [out, in]
    X.weight_zero_point  int32 [ceil(out*b/32), groups]  asymmetric only, packed along rows
    X.weight_g_idx       int32 [in]                      only in files of older writers

int-quantized and naive-quantized store the codes as they are: X.weight int8 [out, in].
Source: the compressed-tensors package.
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
    group_index_or_none,
    parts_of,
    require_part,
    require_shape,
    require_usable_scale,
)
from quant.format.compressed_tensors_config import (
    StoredScheme,
    parse_config,
    quantization_config,
)
from quant.format.errors import UnsupportedModelError
from quant.format.packing import pack_signed, packed_words, unpack_signed
from quant.format.scheme import IntScheme, PerGroup
from quant.format.tensor import QuantizedTensor

__all__ = ["CompressedTensorsCodec", "encode_weight", "quantization_config"]

_PARTS = ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point", "weight_g_idx")


def encode_weight(module: str, tensor: QuantizedTensor) -> dict[str, npt.NDArray[Any]]:
    """The stored tensors of one pack-quantized weight, by name.

    `module` is the name without `.weight`. Raises UnsupportedModelError for a weight that the
    format cannot hold: with minimums, a stored column order, or a short last group.
    """
    scheme, (rows, columns) = tensor.scheme, tensor.shape
    if tensor.minimum is not None or tensor.group_index is not None:
        what = "minimums" if tensor.minimum is not None else "a stored column order"
        raise UnsupportedModelError(f"weight '{module}': compressed-tensors cannot hold {what}")
    if columns % scheme.group_size(columns):
        raise UnsupportedModelError(
            f"weight '{module}': {columns} columns do not divide into groups of "
            f"{scheme.group_size(columns)}"
        )
    assert tensor.scale.shape == (rows, scheme.groups(columns))
    assert scheme.symmetric == (tensor.zero_point is None)
    stored: dict[str, npt.NDArray[Any]] = {
        "weight_packed": pack_signed(tensor.codes, scheme.num_bits),
        "weight_scale": tensor.scale,
        "weight_shape": np.array([rows, columns], dtype=np.int64),
    }
    if tensor.zero_point is not None:
        stored["weight_zero_point"] = pack_signed(tensor.zero_point, scheme.num_bits, axis=0)
    return {f"{module}.{suffix}": array for suffix, array in stored.items()}


class CompressedTensorsCodec:
    """Reads the weights of a compressed-tensors checkpoint; implements `WeightCodec`."""

    suffixes = frozenset(_PARTS) | {"input_scale", "input_zero_point", "output_scale"}

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self._table = parse_config(config, where)
        self._where = where

    def find(self, headers: Headers, load: LoadRaw) -> list[PackedWeight]:
        found = []
        for name, stored in headers.items():
            module, _, suffix = name.rpartition(".")
            if suffix == "weight_packed":
                found.append(self._describe_packed(module, headers, load))
            elif suffix == "weight" and stored.dtype == np.int8:
                found.append(self._describe_plain(module, headers))
        return found

    def decode(self, weight: PackedWeight, load: LoadRaw) -> QuantizedTensor:
        fault, scheme = Fault(self._where, weight.module), weight.scheme
        rows, columns = weight.shape
        if "weight_packed" in weight.parts:
            words = load(weight.parts["weight_packed"])
            codes = unpack_signed(words, scheme.num_bits, columns)
        else:
            codes = _in_range(load(weight.parts["weight"]), scheme, "a code", fault)
        scale = load(weight.parts["weight_scale"])
        if scale.size == 1 or scale.ndim == 1:
            scale = np.ascontiguousarray(np.broadcast_to(scale.reshape(-1, 1), (rows, 1)))
        require_usable_scale(scale, fault)
        zero_point = self._zero_point(weight, load, fault)
        index = None
        if "weight_g_idx" in weight.parts:
            stored_index = load(weight.parts["weight_g_idx"])
            if not (stored_index == -1).all():
                index = group_index_or_none(stored_index, scheme, fault)
        return QuantizedTensor(scheme, codes, scale, zero_point, group_index=index)

    def _describe_packed(self, module: str, headers: Headers, load: LoadRaw) -> PackedWeight:
        fault, parts = Fault(self._where, module), parts_of(module, headers, _PARTS)
        stored = self._scheme(module, fault)
        if stored.format != "pack-quantized":
            raise fault.malformed(f"is packed, but the config says {stored.format}")
        packed = require_part(headers, parts, "weight_packed", ("int32",), fault)
        require_shape(
            require_part(headers, parts, "weight_shape", ("int64", "int32"), fault),
            (2,),
            "weight_shape",
            fault,
        )
        rows, columns = (int(size) for size in load(parts["weight_shape"]))
        if rows <= 0 or columns <= 0:
            raise fault.malformed(f"weight_shape says [{rows}, {columns}]")
        bits = stored.scheme.num_bits
        require_shape(packed, (rows, packed_words(columns, bits)), "weight_packed", fault)
        self._refuse_padded_words(columns, bits, fault)
        self._check_parameters(stored, (rows, columns), headers, parts, fault)
        return PackedWeight(module, (rows, columns), stored.scheme, parts)

    def _describe_plain(self, module: str, headers: Headers) -> PackedWeight:
        fault = Fault(self._where, module)
        parts = parts_of(module, headers, ("weight", "weight_scale", "weight_zero_point"))
        stored = self._scheme(module, fault)
        if stored.format == "pack-quantized":
            raise fault.malformed("is not packed, but the config says pack-quantized")
        shape = headers[parts["weight"]].shape
        if len(shape) != 2 or 0 in shape:
            raise fault.malformed(f"has shape {list(shape)}, not [out, in]")
        self._check_parameters(stored, (shape[0], shape[1]), headers, parts, fault)
        return PackedWeight(module, (shape[0], shape[1]), stored.scheme, parts)

    def _scheme(self, module: str, fault: Fault) -> StoredScheme:
        stored = self._table.lookup(module)
        if stored is None:
            raise fault.malformed("is quantized, but no group of quantization_config targets it")
        return stored

    def _check_parameters(
        self,
        stored: StoredScheme,
        shape: tuple[int, int],
        headers: Headers,
        parts: Mapping[str, str],
        fault: Fault,
    ) -> None:
        """Scale, zero point and column order have the dtypes and shapes that the scheme needs."""
        scheme, (rows, columns) = stored.scheme, shape
        if isinstance(scheme.granularity, PerGroup) and columns % scheme.granularity.size:
            raise fault.malformed(
                f"{columns} columns do not divide into groups of {scheme.granularity.size}"
            )
        expected = (rows, scheme.groups(columns))
        scale = require_part(headers, parts, "weight_scale", FLOAT_DTYPES, fault)
        if stored.one_scale:
            require_shape(scale, (1,) if len(scale) == 1 else (), "weight_scale", fault)
        elif scale != (rows,) or expected[1] != 1:
            require_shape(scale, expected, "weight_scale", fault)
        if not scheme.symmetric:
            zero = require_part(headers, parts, "weight_zero_point", ("int32", "int8"), fault)
            if headers[parts["weight_zero_point"]].dtype == np.int32:
                expected = (packed_words(rows, scheme.num_bits), expected[1])
                self._refuse_padded_words(rows, scheme.num_bits, fault)
            require_shape(zero, expected, "weight_zero_point", fault)
        if "weight_g_idx" in parts:
            index = require_part(headers, parts, "weight_g_idx", ("int32", "int64"), fault)
            require_shape(index, (columns,), "weight_g_idx", fault)

    def _refuse_padded_words(self, count: int, num_bits: int, fault: Fault) -> None:
        """Old writers padded each word to whole codes.

        Nearly always that takes more words, so that the shape tells; one word is the same in both.
        """
        words, padded_words = packed_words(count, num_bits), -(-count // (32 // num_bits))
        ambiguous = 32 % num_bits and 1 < words == padded_words
        if ambiguous and not self._table.dense_words:
            raise fault.unsupported(
                f"its {num_bits}-bit codes may be padded to whole words, as compressed-tensors "
                "before 0.18 did; write it again with a current release"
            )

    def _zero_point(
        self, weight: PackedWeight, load: LoadRaw, fault: Fault
    ) -> npt.NDArray[np.int8] | None:
        name = weight.parts.get("weight_zero_point")
        if name is None:
            return None
        stored = load(name)
        if weight.scheme.symmetric:
            if (stored != 0).any():
                raise fault.malformed("is symmetric, but has zero points that are not 0")
            return None
        if stored.dtype == np.int32:
            return unpack_signed(stored, weight.scheme.num_bits, weight.shape[0], axis=0)
        return _in_range(stored, weight.scheme, "a zero point", fault)


def _in_range(
    codes: npt.NDArray[np.int8], scheme: IntScheme, what: str, fault: Fault
) -> npt.NDArray[np.int8]:
    if int(codes.min()) < scheme.qmin or int(codes.max()) > scheme.qmax:
        raise fault.malformed(f"{what} is outside {scheme.qmin}..{scheme.qmax}")
    return codes
