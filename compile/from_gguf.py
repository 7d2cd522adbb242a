"""A GGUF file as a Hugging Face config and weights under their Hugging Face names."""

from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compile.gguf_config import GgufKeys
from compile.gguf_names import (
    ARCHITECTURES,
    FACTOR,
    LONG_FACTORS,
    ROPE_FACTORS,
    SHORT_FACTORS,
    experts_names,
    halves_order,
    hugging_face_name,
    rope_heads,
    take_rows,
)
from quant.format.errors import FileFormatError, UnsupportedModelError
from quant.format.ggml_fp4 import with_factor
from quant.format.gguf_blocks import FLOATS, SCHEMES, decode, scheme_of, stored_integers
from quant.format.gguf_file import GgufFile, GgufTensor
from quant.format.gguf_types import F32, NVFP4, GgmlType
from quant.format.scheme import FloatScheme, Scheme
from quant.format.stored import StoredIntegers
from quant.format.tensor import QuantizedTensor, Weight

COMPUTED = (ROPE_FACTORS, SHORT_FACTORS, LONG_FACTORS)


class GgufWeights:
    """WeightSource over a GGUF file. Rows of q and k come back in Hugging Face's order, and weights
    of norms as the offset that Hugging Face stores.

    Types that have no QuantizedTensor form are dequantized to float32 as they are loaded.
    """

    def __init__(self, file: GgufFile, config: Mapping[str, Any]) -> None:
        self._file = file
        self._heads = (config["num_attention_heads"], config["num_key_value_heads"])
        self._architecture = ARCHITECTURES[config["model_type"]]
        self._tensors: dict[str, GgufTensor] = {}
        self._experts: dict[str, int] = {}
        count = config.get("num_local_experts") or config.get("num_experts") or 0
        for tensor in file.tensors.values():
            if tensor.name in COMPUTED or _is_factor(file, tensor):
                continue
            stacked = experts_names(tensor.name, count, self._architecture)
            if stacked is not None:
                self._add_experts(tensor, stacked)
                continue
            name = hugging_face_name(tensor.name, self._architecture)
            if name is None:
                problem = f"tensor '{tensor.name}' belongs to no supported model family"
                raise UnsupportedModelError(f"{file.path}: {problem}")
            self._tensors[name] = self._checked(name, tensor)

    def names(self) -> Collection[str]:
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        shape = self._tensors[name].shape
        return shape[1:] if name in self._experts else shape

    def scheme(self, name: str) -> Scheme:
        return scheme_of(self._tensors[name].type) or FloatScheme("float32")

    def stored_type(self, name: str) -> GgmlType:
        """The type that the file holds a tensor in."""
        return self._tensors[name].type

    def blocks(self, name: str) -> npt.NDArray[np.uint8]:
        """The bytes of a quantized matrix, uint8 [rows, bytes per row], in Hugging Face's order."""
        tensor, rows = self._tensors[name], self.shape(name)[0]
        data = self._raw(name).reshape(rows, -1)
        heads = self._reordered_heads(name)
        data = data.copy() if heads is None else data[halves_order(rows, heads)]
        self._file.forget(tensor.name)
        return data

    def forget(self, name: str) -> None:
        """Lets the system drop a tensor's pages; what `load` gave of floats is read again."""
        self._file.forget(self._tensors[name].name)

    def factor(self, name: str) -> float:
        """What all numbers of a tensor are multiplied by: 1 but for NVFP4."""
        tensor = self._tensors[name]
        return float(self._factor(name, tensor)) if tensor.type == NVFP4 else 1.0

    def _raw(self, name: str) -> npt.NDArray[np.uint8]:
        tensor = self._tensors[name]
        data = self._file.raw(tensor.name)
        if name in self._experts:
            data = data.reshape(tensor.shape[0], -1)[self._experts[name]]
        return data

    def stored(self, name: str) -> StoredIntegers | None:
        """Integers as they lie in the file, in Hugging Face's order; None for what is no matrix of
        integers."""
        tensor, shape = self._tensors[name], self.shape(name)
        if len(shape) != 2:
            return None
        data, heads = self._raw(name).reshape(shape[0], -1), self._reordered_heads(name)
        if heads is not None:
            data = data[halves_order(shape[0], heads)]
        return stored_integers(tensor.type, data, (shape[0], shape[1]))

    def load(self, name: str) -> Weight:
        tensor, shape = self._tensors[name], self.shape(name)
        data = self._raw(name)
        if tensor.type in FLOATS or tensor.type in SCHEMES:
            weight = decode(tensor.type, data, shape)
        else:
            weight = _dequantize(tensor.type, data).reshape(shape)
        if tensor.type == NVFP4:
            assert isinstance(weight, QuantizedTensor)
            weight = with_factor(weight, self._factor(name, tensor))
        heads = self._reordered_heads(name)
        if heads is not None:
            weight = take_rows(weight, halves_order(tensor.shape[0], heads))
        if tensor.type not in FLOATS:
            self._file.forget(tensor.name)
        offset = self._architecture.norm_offset
        if offset and name.endswith("norm.weight"):
            assert not isinstance(weight, QuantizedTensor), "a vector has no blocks"
            weight = weight.astype(np.float32) - np.float32(offset)
        return weight

    def _factor(self, name: str, tensor: GgufTensor) -> np.float32:
        """What an NVFP4 matrix is multiplied by: 1 where the file does not say."""
        beside = self._file.tensors.get(tensor.name.removesuffix(".weight") + FACTOR)
        if beside is None:
            return np.float32(1)
        count = tensor.shape[0] if name in self._experts else 1
        if beside.type != F32 or beside.shape != (count,):
            problem = f"tensor '{beside.name}' must be F32 [{count}]"
            raise FileFormatError(
                self._file.path, f"{problem}, not {beside.type} {[*beside.shape]}"
            )
        factor: np.float32 = self._file.raw(beside.name).view("<f4")[self._experts.get(name, 0)]
        if not np.isfinite(factor) or factor <= 0:
            problem = f"tensor '{beside.name}' holds {factor}, not a number above 0"
            raise FileFormatError(self._file.path, problem)
        return factor

    def _add_experts(self, tensor: GgufTensor, names: list[str]) -> None:
        if len(tensor.shape) != 3 or tensor.shape[0] != len(names):
            problem = f"tensor '{tensor.name}' has the shape {list(tensor.shape)}, not a matrix for"
            raise FileFormatError(self._file.path, f"{problem} each of {len(names)} experts")
        self._tensors |= dict.fromkeys(names, tensor)
        self._experts |= {name: number for number, name in enumerate(names)}

    def _reordered_heads(self, name: str) -> int | None:
        return rope_heads(name, *self._heads) if self._architecture.interleaved_rope else None

    def _checked(self, name: str, tensor: GgufTensor) -> GgufTensor:
        heads = self._reordered_heads(name)
        if heads is not None and tensor.shape[0] % (2 * heads):
            problem = f"tensor '{tensor.name}' has {tensor.shape[0]} rows, not {heads} even heads"
            raise FileFormatError(self._file.path, problem)
        if tensor.type in SCHEMES and len(tensor.shape) != 2:
            problem = f"tensor '{tensor.name}' is {tensor.type} but not a matrix"
            raise FileFormatError(self._file.path, problem)
        return tensor


def open_gguf(path: Path) -> tuple[dict[str, Any], GgufWeights, Mapping[str, Any], list[str]]:
    """(config, weights, metadata, notes) of a GGUF file.

    config: the equivalent of config.json; explicit rotary factors are `rope_type: factors`.
    metadata: every key of the header. notes: what loading has to do that a user may want to know.
    Raises FileFormatError for a malformed file, UnsupportedModelError for an architecture, tensor
    or number type that is not known.
    """
    file = GgufFile(path)
    config = GgufKeys(file).config()
    weights = GgufWeights(file, config)
    return config, weights, file.metadata, _type_notes(file)


def _is_factor(file: GgufFile, tensor: GgufTensor) -> bool:
    """Whether a tensor says how the NVFP4 one beside it, or its input, is multiplied."""
    stem, _, kind = tensor.name.rpartition(".")
    owner = file.tensors.get(f"{stem}.weight")
    return kind in ("scale", "input_scale") and owner is not None and owner.type == NVFP4


def _type_notes(file: GgufFile) -> list[str]:
    """One sentence for each type that has to become float32; refuses what cannot."""
    foreign = Counter(
        tensor.type
        for tensor in file.tensors.values()
        if tensor.type not in FLOATS and tensor.type not in SCHEMES
    )
    notes = []
    for kind, count in foreign.items():
        try:
            _dequantize(kind, np.zeros(kind.block_bytes, np.uint8))
        except NotImplementedError:
            problem = f"{count} tensors have type {kind}, which is not supported"
            raise UnsupportedModelError(f"{file.path}: {problem}") from None
        notes.append(f"{count} tensors of type {kind} are dequantized to float32")
    return notes


def _dequantize(kind: GgmlType, data: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """float32 [elements]. Raises NotImplementedError for a type that gguf cannot read."""
    import gguf

    blocks = data.reshape(-1, kind.block_bytes)
    with np.errstate(all="ignore"):
        values = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType(kind.id))
    return np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
