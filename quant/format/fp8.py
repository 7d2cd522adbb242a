"""Hugging Face's fine-grained FP8 checkpoints, both ways.

For a module X of shape [out, in]:

    X.weight            float8_e4m3fn [out, in]
    X.weight_scale_inv  float32, one per block [ceil(out/128), ceil(in/128)], or a scalar for the
                        whole weight; with scale_fmt "ue8m0" float8_e8m0fnu. A multiplier in spite
                        of its name.
    X.activation_scale  float32, a scalar, where activation_scheme is "static": a multiplier

Source: transformers (FineGrainedFP8Config and its integration), after DeepSeek-V3.
"""

from collections.abc import Mapping
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt

from quant.format.codec import (
    Fault,
    Headers,
    LoadRaw,
    PackedWeight,
    parts_of,
    require_part,
    require_scalar,
    require_shape,
    require_usable_scale,
)
from quant.format.errors import FileFormatError, UnsupportedModelError
from quant.format.scheme import (
    ActivationScheme,
    CodebookScheme,
    FloatScheme,
    PerBlock,
    PerGroup,
    PerTensor,
    PerToken,
    QuantizedScheme,
    Scheme,
    scale_shape,
)
from quant.format.tensor import QuantizedTensor

_PARTS = ("weight", "weight_scale_inv", "activation_scale")


def why_not(scheme: QuantizedScheme, shape: tuple[int, ...]) -> str | None:
    """Why a weight cannot be held, and what to set instead; None when it can."""
    if not isinstance(scheme, CodebookScheme) or scheme.codebook != "e4m3":
        return "fine-grained FP8 files have 8-bit floats: set scheme.type=fp8"
    if scheme.activation is None or scheme.activation.numbers != "e4m3":
        return "its files always round inputs to FP8: set scheme.activations=fp8"
    block = scheme.granularity
    if not isinstance(block, PerBlock | PerTensor):
        return "its scales are per block or per tensor: set scheme.group_size=block"
    if scheme.activation != _activation(block, scheme.activation.dynamic):
        return f"it cannot say {scheme.activation} for the inputs: set scheme.activations"
    if isinstance(block, PerTensor):
        return None if scheme.scales == "float" else "its power-of-two scales are per block"
    if not scheme.activation.dynamic:
        return "weights in blocks need dynamic activations: set scheme.activations=fp8"
    rows, columns = shape
    if columns % block.columns:
        return (
            f"its {columns} inputs do not divide into the groups of {block.columns} that they are "
            "rounded in: ignore it"
        )
    if rows > block.rows and rows % block.rows:
        return (
            f"its {rows} outputs are not whole blocks of {block.rows}, and transformers takes all "
            "blocks for equally large: ignore it"
        )
    return None


def encode_weight(module: str, tensor: QuantizedTensor) -> dict[str, npt.NDArray[Any]]:
    """The stored tensors of one weight by name; `module` is the name without `.weight`.

    Raises UnsupportedModelError for a scheme or shape that `why_not` refuses.
    """
    scheme = tensor.scheme
    problem = why_not(scheme, tensor.shape)
    if problem:
        raise UnsupportedModelError(f"weight '{module}': {problem}")
    assert isinstance(scheme, CodebookScheme) and scheme.activation is not None
    scale = tensor.scale if scheme.scales == "e8m0" else tensor.scale.astype(np.float32)
    if isinstance(scheme.granularity, PerTensor):
        scale = scale.reshape(())
    stored: dict[str, npt.NDArray[Any]] = {
        "weight": tensor.codes.view(ml_dtypes.float8_e4m3fn),
        "weight_scale_inv": scale,
    }
    if not scheme.activation.dynamic:
        if tensor.input_scale is None:
            raise ValueError(f"weight '{module}' ({scheme}) has no input_scale")
        stored["activation_scale"] = np.array(tensor.input_scale, dtype=np.float32)
    return {f"{module}.{suffix}": array for suffix, array in stored.items()}


def quantization_config(modules: Mapping[str, Scheme]) -> dict[str, Any]:
    """The config for {module: scheme} of every linear; all quantized ones share a scheme."""
    (scheme,) = {s for s in modules.values() if isinstance(s, CodebookScheme)}
    assert scheme.activation is not None
    block, kept = scheme.granularity, [n for n, s in modules.items() if isinstance(s, FloatScheme)]
    config: dict[str, Any] = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic" if scheme.activation.dynamic else "static",
        "weight_block_size": [block.rows, block.columns] if isinstance(block, PerBlock) else None,
        "modules_to_not_convert": kept if "lm_head" in modules else [*kept, "lm_head"],
    }
    if scheme.scales == "e8m0":
        config["scale_fmt"] = "ue8m0"
    tables = [name for name in modules if name.endswith("embed_tokens") and name not in kept]
    if tables:
        config["modules_to_convert"] = tables
    return config


class Fp8Codec:
    """Reads the weights of a fine-grained FP8 checkpoint; implements `WeightCodec`."""

    suffixes = frozenset(_PARTS) - {"weight"}

    def __init__(self, config: Mapping[str, Any], where: str) -> None:
        self._where = where
        self._scheme = _scheme(config, where)

    def find(self, headers: Headers, load: LoadRaw) -> list[PackedWeight]:
        return [
            self._describe(name.removesuffix(".weight"), headers)
            for name, stored in headers.items()
            if name.endswith(".weight") and stored.dtype == ml_dtypes.float8_e4m3fn
        ]

    def decode(self, weight: PackedWeight, load: LoadRaw) -> QuantizedTensor:
        fault, scheme = Fault(self._where, weight.module), self._scheme
        codes = load(weight.parts["weight"]).view(np.int8)
        if bool(((codes & np.int8(127)) == 127).any()):
            raise fault.malformed("a code is NaN")
        scale = load(weight.parts["weight_scale_inv"]).reshape(scale_shape(scheme, weight.shape))
        if scheme.scales == "e8m0":
            scale = scale.view(ml_dtypes.float8_e8m0fnu)
        require_usable_scale(scale, fault)
        input_scale = None
        if "activation_scale" in weight.parts:
            input_scale = float(load(weight.parts["activation_scale"]).reshape(()))
            if not (np.isfinite(input_scale) and input_scale > 0):
                raise fault.malformed(f"'activation_scale' is {input_scale}, not positive")
        return QuantizedTensor(scheme, codes, scale, input_scale=input_scale)

    def _describe(self, module: str, headers: Headers) -> PackedWeight:
        fault, parts = Fault(self._where, module), parts_of(module, headers, _PARTS)
        scheme = self._scheme
        shape = headers[parts["weight"]].shape
        if len(shape) != 2 or 0 in shape:
            raise fault.malformed(f"has shape {list(shape)}, not [out, in]")
        dtypes = ("float32",) if scheme.scales == "float" else ("uint8", "float8_e8m0fnu")
        stored = require_part(headers, parts, "weight_scale_inv", dtypes, fault)
        if isinstance(scheme.granularity, PerTensor):
            require_scalar(stored, "weight_scale_inv", fault)
        else:
            require_shape(stored, scale_shape(scheme, shape), "weight_scale_inv", fault)
        if scheme.activation is not None and not scheme.activation.dynamic:
            stored = require_part(headers, parts, "activation_scale", ("float32",), fault)
            require_scalar(stored, "activation_scale", fault)
        elif "activation_scale" in parts:
            raise fault.malformed("has 'activation_scale', but the config says dynamic")
        return PackedWeight(module, (shape[0], shape[1]), scheme, parts)


def _activation(granularity: PerBlock | PerTensor, dynamic: bool) -> ActivationScheme:
    if not dynamic:
        return ActivationScheme("e4m3", PerTensor(), dynamic=False)
    if isinstance(granularity, PerBlock):
        return ActivationScheme("e4m3", PerGroup(granularity.columns))
    return ActivationScheme("e4m3", PerToken())


def _scheme(config: Mapping[str, Any], where: str) -> CodebookScheme:
    if config.get("fmt", "e4m3") not in ("e4m3", "float8_e4m3fn"):
        raise UnsupportedModelError(f"{where}: FP8 with fmt {config['fmt']!r} is not supported")
    if config.get("expert_dtype", "fp8") != "fp8":
        raise UnsupportedModelError(
            f"{where}: FP8 with expert_dtype {config['expert_dtype']!r} is not supported"
        )
    scale_format = config.get("scale_fmt") or "float"
    activations = config.get("activation_scheme", "dynamic")
    if scale_format not in ("float", "ue8m0"):
        raise FileFormatError(where, f"quantization_config.scale_fmt is {scale_format!r}")
    if activations not in ("dynamic", "static"):
        raise FileFormatError(where, f"quantization_config.activation_scheme is {activations!r}")
    block = _block(config.get("weight_block_size"), where)
    activation = _activation(block, activations == "dynamic")
    scales: Literal["float", "e8m0"] = "float" if scale_format == "float" else "e8m0"
    return CodebookScheme("e4m3", block, scales, activation)


def _block(size: object, where: str) -> PerBlock | PerTensor:
    if size is None:
        return PerTensor()
    pair = isinstance(size, list) and len(size) == 2
    if not isinstance(size, list) or not pair or not all(_is_size(part) for part in size):
        raise FileFormatError(where, f"quantization_config.weight_block_size is {size!r}")
    return PerBlock(size[0], size[1])


def _is_size(size: object) -> bool:
    return type(size) is int and 0 < size < 1 << 31
