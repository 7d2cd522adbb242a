"""Inputs that a linear's scheme rounds to int8, each row by itself: see `compile.input_rounding`.

Integers are handed on as uint8 with 128 for zero: ONNX Runtime multiplies uint8 by int8 with
processors' own instructions, and int8 by int8 one number at a time (a hundred times slower).
"""

import numpy as np

from compile.onnx_contract import INPUT_SCALE_SUFFIX
from compile.to_onnx.nodes import Nodes
from quant.format.rounding import code_range
from quant.format.scheme import ActivationScheme, PerGroup, PerTensor, PerToken

ZERO = 128
LOWEST, HIGHEST = code_range(8)
SMALLEST_SCALE = float(np.finfo(np.float32).eps)
"""Stands in for a scale of 0, that of a row of zeros."""


def can_round(activation: ActivationScheme, columns: int) -> bool:
    """Whether the graph can round such inputs, so that a row depends on itself alone."""
    grain = activation.granularity
    if activation.numbers != "int8":
        return False
    if isinstance(grain, PerGroup) and columns % grain.size:
        return False
    return isinstance(grain, PerToken | PerGroup if activation.dynamic else PerTensor)


def has_integers(activation: ActivationScheme) -> bool:
    """Whether rows have one scale each, so that their integers can be multiplied first."""
    return not isinstance(activation.granularity, PerGroup)


class InputNodes:
    """Rounds values; linears that ask for the same share one rounding."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._done: set[str] = set()

    def integers(self, x: str, weight: str, activation: ActivationScheme) -> tuple[str, str]:
        """uint8 [T, in], and what they are to be multiplied by: float32 [T, 1] or [].

        weight: whose input it is; stored scales have its name.
        """
        nodes = self._nodes
        zero = nodes.byte(ZERO)
        if not activation.dynamic:
            scale = f"{weight}{INPUT_SCALE_SUFFIX}"
            return nodes.add("QuantizeLinear", x, scale, zero, out=f"{weight}.input"), scale
        name = f"{x}.int8"
        scale = f"{name}.scale"
        if name not in self._done:
            self._done.add(name)
            self._scale(x, scale)
            row = nodes.add("Squeeze", scale, nodes.integers(-1), out=f"{name}.scales")
            count = nodes.add("Shape", row, out=f"{name}.count")
            zeros = nodes.add("Expand", zero, count, out=f"{name}.zeros")
            nodes.add("QuantizeLinear", x, row, zeros, out=name, axis=0)
        return name, scale

    def floats(self, x: str, weight: str, activation: ActivationScheme) -> str:
        """float32 [T, in]: the rounded values."""
        nodes, grain = self._nodes, activation.granularity
        group = grain.size if isinstance(grain, PerGroup) else 0
        name = f"{x}.int8.g{group}" if activation.dynamic else f"{weight}.input"
        if name in self._done:
            return name
        self._done.add(name)
        scale, groups = f"{weight}{INPUT_SCALE_SUFFIX}", x
        if group:
            sizes = nodes.integers(0, -1, group)
            groups = nodes.add("Reshape", x, sizes, out=f"{name}.groups")
        if activation.dynamic:
            scale = self._scale(groups, f"{name}.scale")
        steps = nodes.add("Div", groups, scale, out=f"{name}.steps")
        limits = (nodes.number(float(LOWEST)), nodes.number(float(HIGHEST)))
        steps = nodes.add("Clip", steps, *limits, out=f"{name}.clipped")
        steps = nodes.add("Round", steps, out=f"{name}.rounded")
        if not group:
            return nodes.add("Mul", steps, scale, out=name)
        values = nodes.add("Mul", steps, scale, out=f"{name}.values")
        return nodes.add("Flatten", values, out=name, axis=1)

    def _scale(self, x: str, out: str) -> str:
        """float32 [..., 1]: the largest magnitude of the last axis spans the codes."""
        nodes, last = self._nodes, self._nodes.integers(-1)
        sizes = nodes.add("Abs", x, out=f"{out}.sizes")
        largest = nodes.add("ReduceMax", sizes, last, out=f"{out}.largest", keepdims=1)
        span = nodes.number((HIGHEST - LOWEST) / 2)
        plain = nodes.add("Div", largest, span, out=f"{out}.plain")
        nothing = nodes.add("Equal", plain, nodes.number(0.0), out=f"{out}.nothing")
        return nodes.add("Where", nothing, nodes.number(SMALLEST_SCALE), plain, out=out)
