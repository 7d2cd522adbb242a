"""Writing and reading one weight of a compressed-tensors checkpoint."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from quant.format.codec import (
    Fault,
    Headers,
    LoadRaw,
    Locate,
    PackedWeight,
    parts_of,
)
from quant.format.compressed_tensors.args import MX_GROUP, NVFP4_GROUP, PACKED, format_of
from quant.format.compressed_tensors.config import StoredScheme, parse_config
from quant.format.compressed_tensors.layouts import LAYOUTS, LoadedParts, Parts
from quant.format.compressed_tensors.parameters import (
    SUFFIXES,
    check_parameters,
    decode_group_index,
    decode_scalars,
    decode_scale,
    decode_zero_point,
    encode_parameters,
    in_range,
)
from quant.format.errors import UnsupportedModelError
from quant.format.scheme import (
    CodebookScheme,
    IntScheme,
    PerGroup,
    PerTensor,
    QuantizedScheme,
    scale_shape,
)
from quant.format.stored import StoredIntegers
from quant.format.tensor import QuantizedTensor

_WHOLE_BYTES = ("int8", "float8_e4m3fn")


def why_not(scheme: QuantizedScheme, shape: tuple[int, ...]) -> str | None:
    """Why a weight cannot be held, and what to set instead; None when it can."""
    if scheme.ggml_type is not None:
        return f"only GGUF files hold blocks of {scheme.ggml_type}: set scheme.type"
    columns = shape[1]
    size = scheme.group_size(columns)
    if isinstance(scheme.granularity, PerGroup) and columns % size:
        return f"{columns} columns do not divide into groups of {size}: set scheme.group_size"
    inputs = scheme.activation.granularity if scheme.activation is not None else None
    if isinstance(inputs, PerGroup) and columns % inputs.size:
        return (
            f"its {columns} inputs do not divide into the groups of {inputs.size} that they are "
            "rounded in: set scheme.group_size=channel, or ignore it"
        )
    if isinstance(scheme, CodebookScheme):
        needed = {"e4m3": NVFP4_GROUP, "e8m0": MX_GROUP, "float": None}[scheme.scales]
        if needed is not None and scheme.granularity != PerGroup(needed):
            return f"its scales are for groups of {needed}: set scheme.group_size={needed}"
    try:
        layout = format_of(scheme)
    except UnsupportedModelError:
        return f"compressed-tensors has no format for {scheme}: set scheme.type"
    if layout == PACKED and isinstance(scheme.granularity, PerTensor):
        return "packed integers have a scale per row at least: set scheme.group_size=channel"
    return None


def encode_weight(module: str, tensor: QuantizedTensor) -> dict[str, npt.NDArray[Any]]:
    """The stored tensors of one weight by name, in the format that `format_of` its scheme says.

    `module` is the name without `.weight`. Raises UnsupportedModelError for a weight that the
    format cannot hold: with minimums, a stored column order, or a short last group.
    """
    scheme = tensor.scheme
    problem = why_not(scheme, tensor.shape)
    if tensor.minimum is not None or tensor.group_index is not None:
        what = "minimums" if tensor.minimum is not None else "a stored column order"
        problem = f"compressed-tensors cannot hold {what}"
    if problem:
        raise UnsupportedModelError(f"weight '{module}': {problem}")
    assert tensor.scale.shape == scale_shape(scheme, tensor.shape)
    assert scheme.symmetric == (tensor.zero_point is None)
    stored = LAYOUTS[format_of(scheme)].encode(scheme, tensor.codes)
    stored |= encode_parameters(module, tensor)
    return {f"{module}.{suffix}": array for suffix, array in stored.items()}


class CompressedTensorsCodec:
    """Reads the weights of a compressed-tensors checkpoint; implements `WeightCodec`."""

    suffixes = frozenset(SUFFIXES) | {"weight_packed", "weight_shape"}

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self._table = parse_config(config, where)
        self._where = where
        self.kv_cache = self._table.kv_cache

    def find(self, headers: Headers, load: LoadRaw) -> list[PackedWeight]:
        found = []
        for name, stored in headers.items():
            module, _, suffix = name.rpartition(".")
            whole = suffix == "weight" and stored.dtype.name in _WHOLE_BYTES
            if whole or suffix == "weight_packed":
                found.append(self._describe(module, suffix, headers, load))
        return found

    def decode(self, weight: PackedWeight, load: LoadRaw) -> QuantizedTensor:
        scheme, shape, fault = weight.scheme, weight.shape, Fault(self._where, weight.module)
        part = LoadedParts(weight.parts, load)
        stored = self._scheme(weight.module, fault)
        scalars = decode_scalars(scheme, part, fault)
        codes = LAYOUTS[stored.format].decode(scheme, shape, part)
        return QuantizedTensor(
            scheme,
            in_range(codes, scheme, "a code", fault),
            decode_scale(scheme, shape, part, fault),
            decode_zero_point(scheme, shape, part, fault),
            group_index=decode_group_index(scheme, part, fault),
            global_scale=scalars.get("global_scale"),
            input_scale=scalars.get("input_scale"),
        )

    def stored(self, weight: PackedWeight, load: LoadRaw, locate: Locate) -> StoredIntegers | None:
        """See StoresIntegers; None for codebooks, and for columns in an order of their own."""
        scheme, shape, fault = weight.scheme, weight.shape, Fault(self._where, weight.module)
        if not isinstance(scheme, IntScheme) or "weight_g_idx" in weight.parts:
            return None
        layout = LAYOUTS[self._scheme(weight.module, fault).format]
        rows = layout.rows(scheme, shape, lambda suffix: locate(weight.parts[suffix]))
        if rows is None:
            return None
        part = LoadedParts(weight.parts, load)
        scale = decode_scale(scheme, shape, part, fault)
        zeros = decode_zero_point(scheme, shape, part, fault)
        scalars = decode_scalars(scheme, part, fault)
        return StoredIntegers(
            scheme,
            shape,
            rows,
            _for_each_row(scale, shape[0]),
            None if zeros is None else _for_each_row(zeros, shape[0]),
            input_scale=scalars.get("input_scale"),
        )

    def _describe(self, module: str, suffix: str, headers: Headers, load: LoadRaw) -> PackedWeight:
        fault = Fault(self._where, module)
        stored = self._scheme(module, fault)
        layout = LAYOUTS[stored.format]
        if layout.suffixes[0] != suffix:
            raise fault.malformed(f"is stored as '{suffix}', but the config says {stored.format}")
        names = parts_of(module, headers, (*layout.suffixes, *SUFFIXES))
        parts = Parts(headers, names, load, fault, self._table.dense_words)
        shape = layout.logical_shape(stored.scheme, parts)
        check_parameters(stored.scheme, shape, parts)
        return PackedWeight(module, shape, stored.scheme, names)

    def _scheme(self, module: str, fault: Fault) -> StoredScheme:
        stored = self._table.lookup(module)
        if stored is None:
            raise fault.malformed("is quantized, but no group of quantization_config targets it")
        return stored


def _for_each_row(numbers: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
    """One row of scales for the whole tensor becomes one for each output row."""
    return np.ascontiguousarray(np.broadcast_to(numbers, (rows, numbers.shape[1])))
