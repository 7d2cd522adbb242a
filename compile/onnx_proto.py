"""An ONNX graph as plain data, and its protobuf: the one module that needs the `onnx` package."""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy.typing as npt

from compile.onnx_contract import IR_VERSION, OPSET
from compile.onnx_lint.wire import BYTES, WireFile
from quant.format.errors import FileFormatError, InputError, MissingExtraError

MAX_GRAPH_BYTES = 256 << 20
"""Weights lie beside the graph; a protobuf cannot hold 2 GB, and ours never comes near this."""
MAX_GRAPH_PARTS = 500_000
"""Fields of the graph and of its nodes: a few of these are a node, which takes a hundred times its
bytes once it is read."""
_GRAPH, _NODE = 7, 1
DTYPES = ("float32", "float16", "bfloat16", "float8e4m3fn", "int8", "int4", "int64", "bool")
_NAMES = {"float32": "FLOAT"}

Attribute = int | float | str | tuple[int, ...]


@dataclass(frozen=True)
class Node:
    """One operation of the default domain."""

    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)


@dataclass(frozen=True)
class Port:
    """An input or output of the graph; sizes are numbers or names."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class ExternalTensor:
    """A tensor whose bytes lie in the file `location`, beside the graph."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    location: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Graph:
    """constants: int64 or float32, kept within the graph. metadata: the model's, by key."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    nodes: tuple[Node, ...]
    tensors: tuple[ExternalTensor, ...]
    constants: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)


def encode_graph(graph: Graph, producer_version: str) -> bytes:
    """The ModelProto, always the same bytes for the same graph. Raises MissingExtraError."""
    onnx = _onnx()
    helper = onnx.helper
    nodes = [
        helper.make_node(node.op, node.inputs, node.outputs, node.outputs[0], **node.attributes)
        for node in graph.nodes
    ]
    constants = [
        onnx.numpy_helper.from_array(array, name) for name, array in graph.constants.items()
    ]
    proto = helper.make_graph(
        nodes,
        "decoder_step",
        [_port(onnx, port) for port in graph.inputs],
        [_port(onnx, port) for port in graph.outputs],
        [*constants, *(_external(onnx, tensor) for tensor in graph.tensors)],
    )
    model = helper.make_model(
        proto,
        ir_version=IR_VERSION,
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="coldpress",
        producer_version=producer_version,
    )
    helper.set_model_props(model, dict(sorted(graph.metadata.items())))
    encoded: bytes = model.SerializeToString(deterministic=True)
    return encoded


def read_graph(path: Path, *, constants: bool = False) -> Graph:
    """The graph of a file, without its weights' bytes; constants: read those too.

    Raises FileFormatError for what is no ONNX model, MissingExtraError without the package, and
    InputError for graphs with custom operations, functions or nested graphs: none is ever run.
    """
    onnx = _onnx()
    try:
        if path.stat().st_size > MAX_GRAPH_BYTES:
            raise FileFormatError(path, f"is larger than {MAX_GRAPH_BYTES:,} bytes without weights")
        _count_parts(path)
        model = onnx.ModelProto.FromString(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except InputError:
        raise
    except Exception as error:  # DecodeError, of whichever protobuf implementation is there
        raise FileFormatError(path, "is not an ONNX model, or is damaged") from error
    try:
        _refuse_code(onnx, path, model)
        found = _read(onnx, path, model)
        return replace(found, constants=_read_constants(onnx, model)) if constants else found
    except (TypeError, ValueError, UnicodeError) as error:
        # Names that are not UTF-8 arrive as bytes, and attributes may lack a type.
        raise FileFormatError(path, "has names or attributes that are damaged") from error


def _count_parts(path: Path) -> None:
    """FileFormatError where a graph has too many, which is known long before they are read."""
    file = WireFile(path, MAX_GRAPH_PARTS)
    try:
        for number, kind, start, end in file.fields(0, file.size):
            if (number, kind) == (_GRAPH, BYTES):
                for part, part_kind, part_start, part_end in file.fields(start, end):
                    if (part, part_kind) == (_NODE, BYTES):
                        deque(file.fields(part_start, part_end), maxlen=0)
    finally:
        file.close()


def _read(onnx: ModuleType, path: Path, model: Any) -> Graph:
    graph = model.graph
    return Graph(
        inputs=tuple(_read_port(onnx, port) for port in graph.input),
        outputs=tuple(_read_port(onnx, port) for port in graph.output),
        nodes=tuple(_read_node(onnx, node) for node in graph.node),
        tensors=tuple(
            _read_external(onnx, path, tensor)
            for tensor in graph.initializer
            if tensor.data_location == onnx.TensorProto.EXTERNAL
        ),
        metadata={_text(entry.key): _text(entry.value) for entry in model.metadata_props},
    )


def _read_constants(onnx: ModuleType, model: Any) -> dict[str, npt.NDArray[Any]]:
    return {
        _text(tensor.name): onnx.numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_location != onnx.TensorProto.EXTERNAL
    }


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _onnx() -> ModuleType:
    try:
        import onnx
        import onnx.helper
        import onnx.numpy_helper
    except ImportError as error:
        raise MissingExtraError("ONNX", "onnx", "onnx") from error
    return onnx


def _code(onnx: ModuleType, dtype: str) -> int:
    assert dtype in DTYPES
    return int(getattr(onnx.TensorProto, _NAMES.get(dtype, dtype.upper())))


def _dtype(onnx: ModuleType, code: int) -> str:
    return next((dtype for dtype in DTYPES if _code(onnx, dtype) == code), f"type {code}")


def _port(onnx: ModuleType, port: Port) -> Any:
    return onnx.helper.make_tensor_value_info(port.name, _code(onnx, port.dtype), port.shape)


def _external(onnx: ModuleType, tensor: ExternalTensor) -> Any:
    proto = onnx.TensorProto(
        name=tensor.name,
        data_type=_code(onnx, tensor.dtype),
        dims=tensor.shape,
        data_location=onnx.TensorProto.EXTERNAL,
    )
    place = (("location", tensor.location), ("offset", tensor.offset), ("length", tensor.nbytes))
    for key, value in place:
        proto.external_data.add(key=key, value=str(value))
    return proto


def _refuse_code(onnx: ModuleType, path: Path, model: Any) -> None:
    graph = model.graph
    domains = {_text(item.domain) for item in (*graph.node, *model.opset_import)}
    foreign = sorted(domains - {"", "ai.onnx"})
    if foreign:
        raise InputError(f"{path}: has operations of '{foreign[0]}'; only standard ones are run")
    nested = {onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS}
    inner = any(attribute.type in nested for node in graph.node for attribute in node.attribute)
    if model.functions or graph.sparse_initializer or inner:
        raise InputError(
            f"{path}: has functions, nested graphs or sparse tensors, which coldpress never writes "
            "and does not run; build it again"
        )


def _read_port(onnx: ModuleType, port: Any) -> Port:
    kind = port.type.tensor_type
    shape = tuple(
        _text(size.dim_param) if size.dim_param else int(size.dim_value) for size in kind.shape.dim
    )
    return Port(_text(port.name), _dtype(onnx, kind.elem_type), shape)


def _read_node(onnx: ModuleType, node: Any) -> Node:
    values = {_text(item.name): onnx.helper.get_attribute_value(item) for item in node.attribute}
    plain: dict[str, Attribute] = {
        name: _text(value) if isinstance(value, bytes) else value
        for name, value in values.items()
        if isinstance(value, int | float | bytes)
    }
    plain |= {
        name: tuple(map(int, value))
        for name, value in values.items()
        if isinstance(value, list) and all(isinstance(each, int) for each in value)
    }
    inputs, outputs = tuple(map(_text, node.input)), tuple(map(_text, node.output))
    return Node(_text(node.op_type), inputs, outputs, plain)


def _read_external(onnx: ModuleType, path: Path, tensor: Any) -> ExternalTensor:
    name = _text(tensor.name)
    place = {_text(entry.key): _text(entry.value) for entry in tensor.external_data}
    try:
        offset, nbytes = int(place.get("offset", "0")), int(place["length"])
        location = place["location"]
    except (KeyError, ValueError) as error:
        raise FileFormatError(path, f"tensor {name} does not say where it lies") from error
    shape = tuple(int(size) for size in tensor.dims)
    dtype = _dtype(onnx, tensor.data_type)
    return ExternalTensor(name, dtype, shape, location, offset, nbytes)
