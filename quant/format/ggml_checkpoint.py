"""A Hugging Face checkpoint whose weights lie as ggml's blocks.

`X.weight_blocks`, uint8 [out, bytes per row], holds the rows of `X.weight` in the order of the
original; `quantization_config` says which type each module's blocks are of:

    {"quant_method": "ggml", "types": {"model.layers.0.mlp.up_proj": "Q4_K", ...}, "mix": "Q4_K_M"}

`mix` is optional: what `build` gives the tables that are stored as floats. The format is our own:
the same bytes travel on into GGUF, whose rows of q and k are only in another order.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from quant.format.codec import Fault, Headers, LoadRaw, PackedWeight, require_part
from quant.format.errors import FileFormatError
from quant.format.ggml_mix import MIXES
from quant.format.gguf_blocks import SCHEMES, decode, encode
from quant.format.gguf_types import TYPE_BY_NAME
from quant.format.scheme import FloatScheme, QuantizedScheme, Scheme
from quant.format.tensor import QuantizedTensor

QUANT_METHOD = "ggml"
_SUFFIX = "weight_blocks"


def encode_weight(module: str, tensor: QuantizedTensor) -> dict[str, npt.NDArray[Any]]:
    """The stored tensor of one module. Raises UnsupportedModelError for what is not blocks."""
    assert tensor.scheme.ggml_type is not None, "what cannot be held is refused before"
    kind = TYPE_BY_NAME[tensor.scheme.ggml_type]
    return {f"{module}.{_SUFFIX}": encode(module, kind, tensor)}


def quantization_config(modules: Mapping[str, Scheme]) -> dict[str, Any]:
    """The `quantization_config` for {module: scheme} of every linear."""
    types = {
        module: scheme.ggml_type
        for module, scheme in modules.items()
        if not isinstance(scheme, FloatScheme)
    }
    return {"quant_method": QUANT_METHOD, "types": types}


def why_not(scheme: QuantizedScheme, shape: tuple[int, ...]) -> str | None:
    """Why a weight cannot be held, and what to set instead; None when it can."""
    if scheme.ggml_type is None:
        return "it holds ggml's blocks alone: set scheme.type=ggml and scheme.ggml_type"
    return None


class GgmlCodec:
    """Reads what `encode_weight` writes; implements WeightCodec."""

    suffixes = frozenset({_SUFFIX})

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        types, mix = config.get("types"), config.get("mix")
        if not isinstance(types, dict):
            raise FileFormatError(where, "'quantization_config' holds no object 'types'")
        if mix is not None and mix not in MIXES:
            raise FileFormatError(where, f"'quantization_config' has the unknown mix {mix!r}")
        for module, name in types.items():
            if not isinstance(name, str) or TYPE_BY_NAME.get(name) not in SCHEMES:
                raise FileFormatError(where, f"weight '{module}' has the unknown type {name!r}")
        self._where = where
        self._types: dict[str, str] = types

    def find(self, headers: Headers, load: LoadRaw) -> list[PackedWeight]:
        return [self._found(module, name, headers) for module, name in self._types.items()]

    def decode(self, weight: PackedWeight, load: LoadRaw) -> QuantizedTensor:
        data: npt.NDArray[np.uint8] = load(weight.parts[_SUFFIX])
        tensor = decode(TYPE_BY_NAME[self._types[weight.module]], data, weight.shape)
        assert isinstance(tensor, QuantizedTensor)
        return tensor

    def _found(self, module: str, name: str, headers: Headers) -> PackedWeight:
        fault, kind = Fault(self._where, module), TYPE_BY_NAME[name]
        stored = f"{module}.{_SUFFIX}"
        parts = {_SUFFIX: stored} if stored in headers else {}
        shape = require_part(headers, parts, _SUFFIX, ("uint8",), fault)
        if len(shape) != 2 or shape[1] % kind.block_bytes or not shape[1]:
            raise fault.malformed(
                f"'{_SUFFIX}' has shape {list(shape)}, not rows of whole {kind} blocks of "
                f"{kind.block_bytes} bytes"
            )
        columns = shape[1] // kind.block_bytes * kind.block
        return PackedWeight(module, (shape[0], columns), SCHEMES[kind], parts)
