"""Collects a graph's nodes and constants under names of its own."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from compile.onnx_proto import Attribute, Node


class Nodes:
    """Nodes in the order in which they run; equal constants are one."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self.constants: dict[str, npt.NDArray[Any]] = {}

    def add(self, op: str, *inputs: str, out: str, **attributes: Attribute) -> str:
        """Append an operation with one result, which is called `out`."""
        return self.add_many(op, *inputs, outs=(out,), attributes=attributes)[0]

    def add_many(
        self, op: str, *inputs: str, outs: tuple[str, ...], attributes: Mapping[str, Attribute]
    ) -> tuple[str, ...]:
        """Append an operation with several results."""
        self.nodes.append(Node(op, inputs, outs, dict(attributes)))
        return outs

    def integers(self, *values: int) -> str:
        """A constant int64 [n]: the name tells its value."""
        name = "const." + "_".join(map(str, values))
        self.constants[name] = np.array(values, np.int64)
        return name

    def integer(self, value: int) -> str:
        """A constant int64 without dimensions."""
        name = f"scalar.{value}"
        self.constants[name] = np.array(value, np.int64)
        return name

    def byte(self, value: int) -> str:
        """A constant uint8 without dimensions."""
        name = f"byte.{value}"
        self.constants[name] = np.array(value, np.uint8)
        return name

    def number(self, value: float) -> str:
        """A constant float32 without dimensions."""
        name = f"number.{value!r}"
        self.constants[name] = np.array(value, np.float32)
        return name
