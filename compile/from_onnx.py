"""Reads the weights of an ONNX decoder step that coldpress built, the same integers again."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from compile.external_data import MisplacedError, check_bounds, external_size
from compile.onnx_bytes import FP8, packed_bytes, unpack_int4
from compile.onnx_contract import (
    CONTRACT,
    CONTRACT_VERSION,
    DATA_FILE,
    INPUT_SCALE_SUFFIX,
    INPUTS,
    ORDER_SUFFIX,
    SCALE_SUFFIX,
    ZERO_POINT_SUFFIX,
)
from compile.onnx_proto import ExternalTensor, Graph, read_graph
from quant.format.errors import FileFormatError, InputError
from quant.format.scheme import (
    ActivationScheme,
    CodebookScheme,
    FloatScheme,
    IntScheme,
    PerChannel,
    PerGroup,
    PerTensor,
    Scheme,
)
from quant.format.tensor import QuantizedTensor, Weight

FLOATS: Mapping[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
}
BITS = {"int4": 4, "int8": 8, FP8: 8}
"""Of the types that scales belong to."""
WEIGHT_SUFFIXES = (".weight", ".bias")


@dataclass(frozen=True)
class OnnxWeights:
    """A WeightSource over the file beside a graph. graph_path: what ONNX Runtime is to load."""

    graph_path: Path
    graph: Graph
    _tensors: Mapping[str, ExternalTensor]
    _inputs: Mapping[str, ActivationScheme]

    def names(self) -> Collection[str]:
        return [name for name in self._tensors if name.endswith(WEIGHT_SUFFIXES)]

    def shape(self, name: str) -> tuple[int, ...]:
        shape = self._tensors[name].shape
        return shape[::-1] if self._tensors[name].dtype in BITS else shape

    def scheme(self, name: str) -> Scheme:
        tensor = self._tensors[name]
        if tensor.dtype not in BITS:
            return FloatScheme(tensor.dtype)  # type: ignore[arg-type]
        group = self._group(name)
        symmetric = f"{name}{ZERO_POINT_SUFFIX}" not in self._tensors
        grain = PerGroup(group) if group else PerChannel()
        if tensor.dtype == FP8:
            return CodebookScheme("e4m3", grain)
        return IntScheme(BITS[tensor.dtype], symmetric, grain, self._inputs.get(name))

    def load(self, name: str) -> Weight:
        scheme = self.scheme(name)
        if isinstance(scheme, FloatScheme):
            return self._read(name)
        assert isinstance(scheme, IntScheme | CodebookScheme)
        zero_point = None if scheme.symmetric else self._columns(f"{name}{ZERO_POINT_SUFFIX}")
        codes, scale = self._columns(name), self._columns(f"{name}{SCALE_SUFFIX}")
        if f"{name}{ORDER_SUFFIX}" not in self._tensors:
            return QuantizedTensor(
                scheme, codes, scale, zero_point, input_scale=self._input_scale(name)
            )
        back = np.argsort(self._order(name), kind="stable")
        index = (np.arange(len(back)) // self._group(name)).astype(np.int32)[back]
        return QuantizedTensor(
            scheme,
            codes[:, back],
            scale,
            zero_point,
            group_index=index,
            input_scale=self._input_scale(name),
        )

    def _input_scale(self, name: str) -> float | None:
        part = f"{name}{INPUT_SCALE_SUFFIX}"
        return float(self._read(part)) if part in self._tensors else None

    def _order(self, name: str) -> npt.NDArray[np.int64]:
        """int64 [in]: the place in the checkpoint of each stored column."""
        order = self._read(f"{name}{ORDER_SUFFIX}")
        if not np.array_equal(np.sort(order), np.arange(len(order))):
            raise FileFormatError(self.graph_path, f"the order of tensor {name} is none")
        return order

    def _group(self, name: str) -> int:
        """Columns that share a scale, 0 for all."""
        scales = self._tensors[f"{name}{SCALE_SUFFIX}"].shape
        return self._tensors[name].shape[0] // scales[0] if len(scales) == 2 else 0

    def _columns(self, name: str) -> npt.NDArray[Any]:
        """[out, ...] of a part that is stored as [..., out]."""
        numbers = self._read(name)
        return np.ascontiguousarray(np.atleast_2d(numbers).T)

    def _read(self, name: str) -> npt.NDArray[Any]:
        tensor = self._tensors[name]
        path = self.graph_path.parent / tensor.location
        data = np.fromfile(path, np.uint8, tensor.nbytes, offset=tensor.offset)
        if data.size != tensor.nbytes:
            raise FileFormatError(path, f"ends within tensor {name}")
        if tensor.dtype == "int4":
            return unpack_int4(data, tensor.shape)
        kinds = {**FLOATS, "int8": np.int8, FP8: np.int8, "int64": np.int64}
        numbers: npt.NDArray[Any] = data.view(kinds[tensor.dtype])
        return numbers.reshape(tensor.shape)


def open_onnx(path: Path) -> OnnxWeights:
    """The weights of the graph at `path`, whose bytes are where it says; reads headers only.

    Raises InputError for graphs of other makers and for weights outside the directory (`..`, an
    absolute path, a link), FileFormatError for places beyond the end of the file.
    """
    graph = read_graph(path)
    version = graph.metadata.get(CONTRACT)
    if version != CONTRACT_VERSION:
        raise InputError(
            f"{path}: follows no contract that this coldpress knows ({CONTRACT} is {version}); "
            "build it from its checkpoint with: coldpress build CHECKPOINT -o DIR --target onnx"
        )
    size = _data_size(path, graph)
    for tensor in graph.tensors:
        _check_tensor(path, tensor, size)
    tensors = {tensor.name: tensor for tensor in graph.tensors}
    _check_integers(path, tensors)
    return OnnxWeights(path, graph, tensors, _rounded_inputs(path, graph, tensors))


def _rounded_inputs(
    path: Path, graph: Graph, tensors: Mapping[str, ExternalTensor]
) -> dict[str, ActivationScheme]:
    """Of each weight whose input the graph rounds, how. Raises FileFormatError."""
    said: Any = graph.metadata.get(INPUTS, "{}")
    found: dict[str, ActivationScheme] = {}
    try:
        for words, names in json.loads(said).items():
            found |= dict.fromkeys(names, _activation(words))
    except (AttributeError, RecursionError, TypeError, ValueError) as error:
        raise FileFormatError(path, f"its metadata {INPUTS} cannot be read") from error
    for name, activation in found.items():
        scale = tensors.get(f"{name}{INPUT_SCALE_SUFFIX}")
        stored = scale is not None and (scale.dtype, scale.shape) == ("float32", ())
        known = name in tensors and tensors[name].dtype in BITS
        if not known or stored == activation.dynamic:
            raise FileFormatError(path, f"the input of tensor {name} is said to be rounded oddly")
    return found


def _activation(words: str) -> ActivationScheme:
    """Raises ValueError for words that coldpress does not write."""
    group = words.removeprefix("int8-dynamic-g")
    if group != words:
        return ActivationScheme("int8", PerGroup(int(group)))
    ways = (ActivationScheme("int8"), ActivationScheme("int8", PerTensor(), dynamic=False))
    way = next((way for way in ways if str(way) == words), None)
    if way is None:
        raise ValueError(words)
    return way


def _data_size(path: Path, graph: Graph) -> int:
    """Bytes of the one file that holds weights, which lies beside the graph and nowhere else."""
    for tensor in graph.tensors:
        if tensor.location != DATA_FILE:
            raise InputError(
                f"{path}: tensor {tensor.name} is to be read from {tensor.location!r}; weights are "
                f"read from {DATA_FILE} beside the graph alone"
            )
    if path.is_symlink():
        raise InputError(f"{path}: is a symbolic link; copy the file")
    try:
        return external_size(path, DATA_FILE)
    except MisplacedError as error:
        raise InputError(f"{path}: {error}; copy the file of its weights beside it") from error


def _check_tensor(path: Path, tensor: ExternalTensor, size: int) -> None:
    if any(length < 0 for length in tensor.shape) or tensor.dtype.startswith("type"):
        raise FileFormatError(path, f"tensor {tensor.name} has no type and shape that are known")
    if tensor.nbytes != packed_bytes(tensor.dtype, tensor.shape):
        raise FileFormatError(path, f"tensor {tensor.name} is not of its shape's size")
    try:
        check_bounds(tensor.offset, tensor.nbytes, size)
    except MisplacedError as error:
        raise FileFormatError(path, f"tensor {tensor.name}: {error}") from error


def _check_integers(path: Path, tensors: Mapping[str, ExternalTensor]) -> None:
    """Codes [in, out] have scales [groups, out] or [out], whose groups are of the same size."""
    for name, codes in tensors.items():
        if not name.endswith(WEIGHT_SUFFIXES) or codes.dtype in FLOATS:
            continue
        scale = tensors.get(f"{name}{SCALE_SUFFIX}")
        zero_point = tensors.get(f"{name}{ZERO_POINT_SUFFIX}", None)
        if codes.dtype not in BITS or scale is None or len(codes.shape) != 2:
            raise FileFormatError(path, f"tensor {name} is {codes.dtype} and has no scales")
        columns, rows = codes.shape
        groups = scale.shape[0] if len(scale.shape) == 2 else 1
        fits = scale.dtype == "float32" and scale.shape[-1:] == (rows,) and len(scale.shape) <= 2
        fits = fits and groups > 0 and columns % groups == 0
        if zero_point is not None:
            fits = fits and (zero_point.dtype, zero_point.shape) == (codes.dtype, scale.shape)
        order = tensors.get(f"{name}{ORDER_SUFFIX}")
        if order is not None:
            fits = fits and groups > 1 and (order.dtype, order.shape) == ("int64", (columns,))
        if not fits:
            raise FileFormatError(path, f"tensor {name} and its scales do not fit each other")
