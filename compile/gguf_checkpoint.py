"""A GGUF file seen as a Hugging Face checkpoint, so that what quantizes those takes it too.

Nothing is copied: tensors are read from the GGUF file as they are asked for. Floats keep their
type, quantized matrices are blocks as `quant.format.ggml_checkpoint` describes them, and all stand
under Hugging Face's names and in its order of rows.
"""

import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compile.from_gguf import GgufWeights, open_gguf
from compile.gguf_to_config import huggingface_config
from quant.format.checkpoint import Checkpoint
from quant.format.errors import FileFormatError
from quant.format.ggml_checkpoint import QUANT_METHOD
from quant.format.gguf_blocks import FLOATS, SCHEMES
from quant.format.gguf_types import F32
from quant.format.layout import FloatName, float_dtype
from quant.format.safetensors_file import SafetensorsFile, TensorInfo
from quant.format.tensor import QuantizedTensor

BLOCKS = "_blocks"
"""Ends the name of what a quantized `X.weight` is stored as."""
USUAL_DTYPE: FloatName = "bfloat16"
"""What models of these families are trained in, where no float matrix of the file tells."""
_ROUTER_ENDS = ".gate.weight"


def gguf_checkpoint(payload: Path, directory: Path) -> Checkpoint:
    """The GGUF file `payload` as a checkpoint, its headers read and checked.

    directory: where its config.json and the files of its text side are to lie; not touched here. A
    file with quantized matrices says so in `quantization_config`, as any quantized checkpoint does.
    Raises what `open_gguf` raises.
    """
    config, weights, metadata, _ = open_gguf(payload)
    view = _GgufFile(payload, weights)
    found = huggingface_config(config, metadata, view.dtype)
    if view.quantized:
        found["quantization_config"] = {"quant_method": QUANT_METHOD, "types": view.types}
    notes = tuple(
        f"{count} tensors of type {kind}, which no checkpoint holds as it is, are dequantized and "
        f"rounded to {view.dtype}"
        for kind, count in view.dequantized.items()
    )
    files = dict.fromkeys(view.tensors, view)
    return Checkpoint(payload, found, files, directory=directory, notes=notes)


class _GgufFile(SafetensorsFile):
    """The tensors of a GGUF file as a safetensors file would hold them.

    dtype: that of most float matrices. types: of each module stored in blocks, by name. quantized:
    whether any matrix is. dequantized: how many of each type are floats here, as blocks of theirs
    have no place in a checkpoint, or the number beside them that multiplies them has none.
    """

    def __init__(self, path: Path, weights: GgufWeights) -> None:
        """The header was read and checked before: nothing is mapped twice."""
        self.path = path
        self.metadata = {}
        self.tensors: dict[str, TensorInfo] = {}
        self.types: dict[str, str] = {}
        self.dequantized: Counter[str] = Counter()
        self._weights = weights
        self.quantized = any(weights.stored_type(n) not in FLOATS for n in weights.names())
        self.dtype = _dtype_of_matrices(weights)
        for name in weights.names():
            self._add(name)

    def _add(self, name: str) -> None:
        kind, shape = self._weights.stored_type(name), self._weights.shape(name)
        if kind in SCHEMES and self._weights.factor(name) == 1:
            self.types[name.removesuffix(".weight")] = kind.name
            row_bytes = kind.nbytes((1, shape[1]))
            self._describe(f"{name}{BLOCKS}", np.dtype(np.uint8), (shape[0], row_bytes))
        elif kind in FLOATS and not self._fits(name):
            self._describe(name, FLOATS[kind], shape)
        else:
            self._describe(name, float_dtype(self.dtype), shape)
            if kind not in FLOATS:
                self.dequantized[kind.name] += 1

    def _describe(self, name: str, dtype: np.dtype[Any], shape: tuple[int, ...]) -> None:
        self.tensors[name] = TensorInfo(dtype, shape, 0, math.prod(shape) * dtype.itemsize)

    def _fits(self, name: str) -> bool:
        """Whether the model's type holds a tensor that every GGUF file keeps in float32."""
        small = len(self._weights.shape(name)) == 1 or name.endswith(_ROUTER_ENDS)
        if not small or self._weights.stored_type(name) != F32:
            return False
        values = self._weights.load(name)
        assert not isinstance(values, QuantizedTensor), "floats are no blocks"
        narrow = _as(values, float_dtype(self.dtype))
        return narrow.astype(np.float32).tobytes() == values.tobytes()

    def load(self, name: str) -> npt.NDArray[Any]:
        """One tensor: bytes of blocks, or floats in the type that `tensors` tells.

        Raises FileFormatError for numbers of a dequantized one that its type cannot hold.
        """
        if name not in self._weights.names():
            return self._weights.blocks(name.removesuffix(BLOCKS))
        weight = self._weights.load(name)
        values = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
        copy = _as(values, self.tensors[name].dtype)
        self._weights.forget(name)
        if copy.dtype != values.dtype and not np.isfinite(copy).all():
            problem = f"weight '{name}' has numbers that {copy.dtype} cannot hold"
            raise FileFormatError(self.path, f"{problem}; start from the original checkpoint")
        return copy


def _as(values: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """A copy that its owner may write to."""
    with np.errstate(over="ignore"):
        return np.array(values, dtype=dtype, order="C")


def _dtype_of_matrices(weights: GgufWeights) -> FloatName:
    counts: Counter[str] = Counter()
    for name in weights.names():
        kind, shape = weights.stored_type(name), weights.shape(name)
        if kind in FLOATS and len(shape) == 2 and not name.endswith(_ROUTER_ENDS):
            counts[FLOATS[kind].name] += math.prod(shape)
    known: dict[str, FloatName] = {n: n for n in ("float32", "float16", "bfloat16")}
    return known[counts.most_common(1)[0][0]] if counts else USUAL_DTYPE
