"""Nodes over values of two types: each is cast when somebody needs the other, once."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from compile.onnx_proto import Attribute, Node

CODES = {"float32": 1, "bool": 9, "float16": 10}
"""TensorProto's numbers of the types."""


class TypedNodes:
    """halves: names of values that are float16 from the start; the rest are as they were."""

    def __init__(self, halves: Iterable[str]) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, npt.NDArray[Any]] = {}
        self._halves = set(halves)
        self._casts: dict[str, str] = {}

    def append(self, node: Node, half: bool = False) -> None:
        """half: whether its first result is float16."""
        self.nodes.append(node)
        if half:
            self._halves.add(node.outputs[0])

    def add(self, op: str, *inputs: str, out: str, half: bool, **attributes: Attribute) -> str:
        """Append an operation with one result, called `out`."""
        self.append(Node(op, inputs, (out,), attributes), half)
        return out

    def is_half(self, name: str) -> bool:
        return name in self._halves

    def half(self, name: str) -> str:
        """The float16 value of a float32 one, or itself."""
        return name if name in self._halves else self._cast_once(name, "float16")

    def full(self, name: str) -> str:
        """The float32 value of a float16 one; whatever is not float16 is as it was."""
        return self._cast_once(name, "float32") if name in self._halves else name

    def half_of_stored(self, name: str) -> str:
        """A stored tensor in float16: readers fold the Cast of a constant."""
        return self._cast_once(name, "float16")

    def cast(self, name: str, out: str, dtype: str) -> str:
        return self.add("Cast", name, out=out, half=dtype == "float16", to=CODES[dtype])

    def integers(self, *values: int) -> str:
        """A constant int64 [n]."""
        name = "halves." + "_".join(map(str, values))
        self.constants[name] = np.array(values, np.int64)
        return name

    def one(self) -> str:
        """A constant float16 without dimensions."""
        self.constants["halves.one"] = np.array(1, np.float16)
        return "halves.one"

    def _cast_once(self, name: str, dtype: str) -> str:
        if name not in self._casts:
            self._casts[name] = self.cast(name, f"{name}.{dtype}", dtype)
        return self._casts[name]
