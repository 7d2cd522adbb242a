"""Anybody's ONNX graph as plain data: names, shapes and where weights lie, never weights."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

Attribute = int | float | str | tuple[int, ...]

_NAMES = (
    *("undefined", "float32", "uint8", "int8", "uint16", "int16", "int32", "int64", "string"),
    *("bool", "float16", "float64", "uint32", "uint64", "complex64", "complex128", "bfloat16"),
    *("float8e4m3fn", "float8e4m3fnuz", "float8e5m2", "float8e5m2fnuz", "uint4", "int4"),
    *("float4e2m1", "float8e8m0", "uint2", "int2"),
)
DTYPES: Mapping[int, str] = dict(enumerate(_NAMES))
"""TensorProto.DataType, by our names."""
BITS: Mapping[str, int] = {
    **dict.fromkeys(("uint8", "int8", "bool"), 8),
    **dict.fromkeys(("uint16", "int16", "float16", "bfloat16"), 16),
    **dict.fromkeys(("float32", "int32", "uint32"), 32),
    **dict.fromkeys(("int64", "float64", "uint64", "complex64"), 64),
    **dict.fromkeys((name for name in DTYPES.values() if name.startswith("float8")), 8),
    **dict.fromkeys(("uint4", "int4", "float4e2m1"), 4),
    **dict.fromkeys(("uint2", "int2"), 2),
    "complex128": 128,
}


@dataclass(frozen=True)
class Place:
    """Where external data is said to lie. length: None for the rest of the file."""

    location: str
    offset: int
    length: int | None


@dataclass(frozen=True)
class Tensor:
    """span: of its bytes within the graph's file. place: outside of it. all_zero: of small integer
    tensors whose bytes were looked at; None where they were not."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    inline_bytes: int = 0
    span: tuple[int, int] | None = None
    place: Place | None = None
    all_zero: bool | None = None


@dataclass(frozen=True)
class Value:
    """An input, an output, or a value whose type the file tells. Sizes: numbers, names or None."""

    name: str
    dtype: str = "undefined"
    shape: tuple[int | str | None, ...] | None = None


@dataclass(frozen=True)
class Node:
    """domain: "" is ONNX's own."""

    op: str
    domain: str
    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return self.name or (self.outputs[0] if self.outputs else self.op)

    def input(self, index: int) -> str:
        """The name of an input, "" where it is left out."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def number(self, name: str, otherwise: int) -> int:
        value = self.attributes.get(name, otherwise)
        return int(value) if isinstance(value, int | float) else otherwise


@dataclass(frozen=True)
class OnnxGraph:
    """Nodes of nested graphs come behind those that hold them. functions: domains of functions that
    the file defines itself."""

    path: Path
    ir_version: int
    opsets: Mapping[str, int]
    producer: str
    metadata: Mapping[str, str]
    inputs: tuple[Value, ...]
    outputs: tuple[Value, ...]
    nodes: tuple[Node, ...]
    tensors: Mapping[str, Tensor]
    values: Mapping[str, Value]
    functions: frozenset[str] = frozenset()

    @cached_property
    def maker(self) -> dict[str, Node]:
        """The node that makes each value."""
        return {name: node for node in self.nodes for name in node.outputs if name}

    @cached_property
    def readers(self) -> dict[str, list[Node]]:
        """The nodes that read each value."""
        found: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.inputs:
                found.setdefault(name, []).append(node)
        return found

    @cached_property
    def network_inputs(self) -> list[Value]:
        """Inputs that a caller must feed; older files list initializers too."""
        return [value for value in self.inputs if value.name not in self.tensors]
