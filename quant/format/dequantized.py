"""A quantized checkpoint seen as a float one."""

from typing import Any

import numpy as np
import numpy.typing as npt

from quant.format.checkpoint import Checkpoint
from quant.format.errors import FileFormatError
from quant.format.layout import FloatName, float_dtype
from quant.format.safetensors_file import SafetensorsFile, TensorInfo
from quant.format.scheme import QuantizedScheme
from quant.format.stored import FileBytes
from quant.format.tensor import QuantizedTensor


def dequantized(source: Checkpoint, dtype: FloatName) -> Checkpoint:
    """The same model with every quantized weight as floats of `dtype`, made when it is loaded, and
    a config that says nothing of quantization.

    What `QuantizedTensor.dequantize` gives is rounded once to `dtype`: nothing is lost in float32;
    in 16 bits a code times its scale has more bits than fit. Loading raises FileFormatError for a
    weight that `dtype` cannot hold.
    """
    config = {key: value for key, value in source.config.items() if key != "quantization_config"}
    files = source.files_of_weights()
    views = {file: _DequantizedFile(file, source, dtype) for file in set(files.values())}
    for name, file in files.items():
        views[file].add(name)
    opened = {name: views[file] for name, file in files.items()}
    return Checkpoint(source.path, config, opened, directory=source.directory)


def dequantized_notes(source: Checkpoint, dtype: FloatName) -> list[str]:
    """What a user of the result should know, a sentence each."""
    schemes = [source.scheme(name) for name in source.names()]
    found = [scheme for scheme in schemes if isinstance(scheme, QuantizedScheme)]
    notes = [
        f"{len(found)} weights of the model are quantized already ({source.quant_method}): each "
        f"number is dequantized and rounded to {dtype} first, and what it lost before stays lost"
    ]
    if any(scheme.activation is not None for scheme in found):
        notes.append("how the model rounded inputs is dropped: the recipe says how it is done now")
    if source.kv_cache is not None:
        notes.append("the model's own scales of a KV cache are dropped")
    return notes


class _DequantizedFile(SafetensorsFile):
    """A file of `source` with floats in place of what is packed in it."""

    def __init__(self, file: SafetensorsFile, source: Checkpoint, dtype: FloatName) -> None:
        """The file was read and checked before: nothing is read again."""
        self.path = file.path
        self.metadata = file.metadata
        self.tensors: dict[str, TensorInfo] = {}
        self._source = source
        self._name = dtype
        self._dtype = float_dtype(dtype)

    def add(self, name: str) -> None:
        """Make a logical tensor of the source one of this file."""
        shape, dtype = self._source.shape(name), self._dtype
        scheme = self._source.scheme(name)
        if not isinstance(scheme, QuantizedScheme):
            dtype = float_dtype(scheme.dtype)
        count = int(np.prod(shape, dtype=np.int64))
        self.tensors[name] = TensorInfo(dtype, shape, 0, count * dtype.itemsize)

    def locate(self, name: str) -> FileBytes | None:
        """Nowhere: numbers are made when they are loaded."""
        return None

    def load(self, name: str) -> npt.NDArray[Any]:
        """A tensor as floats."""
        value = self._source.load(name)
        if not isinstance(value, QuantizedTensor):
            return value
        with np.errstate(over="ignore"):
            result: npt.NDArray[Any] = value.dequantize().astype(self._dtype)
        if not np.isfinite(result).all():
            raise FileFormatError(
                self.path,
                f"weight '{name}' has numbers that {self._name} cannot hold; set 'dtype' of "
                "config.json to float32",
            )
        return result
