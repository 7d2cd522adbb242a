"""Mixtures of experts: each expert multiplies the rows that are sent to it, and no other."""

from collections.abc import Callable

from compile.program import Expert, Moe
from compile.to_onnx.nodes import Nodes
from compile.to_onnx.weights import WeightNodes

Activate = Callable[[str, str, str, str], str]
"""(gate, up, activation, out) -> activation(gate) * up."""


def add_mixture(nodes: Nodes, weights: WeightNodes, op: Moe, activate: Activate) -> None:
    """Results are added in the order of the experts, as in the oracle."""
    numbers, factors = _route(nodes, op)
    shape = nodes.add("Shape", op.x, out=f"{op.out}.shape")
    total = nodes.add("Expand", nodes.number(0.0), shape, out=f"{op.out}.zeros")
    for index, expert in enumerate(op.experts):
        name = f"{op.out}.expert{index}"
        rows, factor = _sent(nodes, name, index, numbers, factors)
        x = nodes.add("Gather", op.x, rows, out=f"{name}.x", axis=0)
        result = _run(nodes, weights, name, expert, x, activate, op.activation)
        scaled = nodes.add("Mul", result, factor, out=f"{name}.scaled")
        places = nodes.add("Unsqueeze", rows, nodes.integers(1), out=f"{name}.places")
        out = op.out if index == len(op.experts) - 1 else f"{name}.total"
        total = nodes.add("ScatterND", total, places, scaled, out=out, reduction="add")


def _route(nodes: Nodes, op: Moe) -> tuple[str, str]:
    """int64 and float32 [T, chosen]: each token's experts, and what theirs is multiplied by."""
    shares = nodes.add("Softmax", op.logits, out=f"{op.out}.shares", axis=-1)
    outs = (f"{op.out}.largest", f"{op.out}.numbers")
    factors, numbers = nodes.add_many(
        "TopK", shares, nodes.integers(op.chosen), outs=outs, attributes={"axis": -1}
    )
    if op.normalized:
        last = nodes.integers(-1)
        total = nodes.add("ReduceSum", factors, last, out=f"{op.out}.sum", keepdims=1)
        factors = nodes.add("Div", factors, total, out=f"{op.out}.factors")
    return numbers, factors


def _sent(nodes: Nodes, name: str, index: int, numbers: str, factors: str) -> tuple[str, str]:
    """int64 [n] and float32 [n, 1]: the rows that are sent to an expert, and their factors."""
    last = nodes.integers(-1)
    here = nodes.add("Equal", numbers, nodes.integer(index), out=f"{name}.here")
    own = nodes.add("Where", here, factors, nodes.number(0.0), out=f"{name}.own")
    factor = nodes.add("ReduceSum", own, last, out=f"{name}.factors", keepdims=1)
    ones = nodes.add("Where", here, nodes.integer(1), nodes.integer(0), out=f"{name}.ones")
    count = nodes.add("ReduceSum", ones, last, out=f"{name}.count", keepdims=0)
    found = nodes.add("NonZero", count, out=f"{name}.found")
    rows = nodes.add("Squeeze", found, nodes.integers(0), out=f"{name}.rows")
    return rows, nodes.add("Gather", factor, rows, out=f"{name}.factor", axis=0)


def _run(
    nodes: Nodes,
    weights: WeightNodes,
    name: str,
    expert: Expert,
    x: str,
    activate: Activate,
    activation: str,
) -> str:
    gate = weights.multiply(x, expert.gate.weight, expert.gate.bias, f"{name}.gate")
    up = weights.multiply(x, expert.up.weight, expert.up.bias, f"{name}.up")
    gated = activate(gate, up, activation, f"{name}.gated")
    return weights.multiply(gated, expert.down.weight, expert.down.bias, f"{name}.down")
