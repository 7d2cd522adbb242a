"""Mixtures of experts without NonZero, which TensorRT-RTX has no implementation of: every expert
multiplies every row, and rows that were not sent to it count as zero."""

from dataclasses import replace

import numpy as np

from compile.onnx_proto import Graph, Node
from compile.to_tensorrt.typed_nodes import CODES

ZERO = "experts.zero"


def with_all_rows(graph: Graph) -> Graph:
    """The same step, where the rows that NonZero finds are all rows.

    An expert's factor is 0 for the rows that are not its own, so the sums are the same; costs what
    all experts cost for each token.
    """
    if not any(node.op == "NonZero" for node in graph.nodes):
        return graph
    widening = _Widening()
    for node in graph.nodes:
        widening.add(node)
    constants = {**graph.constants, ZERO: np.array(0, np.float32)}
    return replace(graph, nodes=tuple(widening.nodes), constants=constants)


class _Widening:
    """Takes the nodes one by one; what was gathered from all rows is what it was gathered from."""

    def __init__(self) -> None:
        self.nodes: list[Node] = []
        self._rows: set[str] = set()
        self._names: dict[str, str] = {}

    def add(self, node: Node) -> None:
        inputs, out = tuple(self._names.get(n, n) for n in node.inputs), node.outputs[0]
        match node.op:
            case "NonZero":
                self._rows.add(out)
            case "Squeeze" | "Unsqueeze" if inputs[0] in self._rows:
                self._rows.add(out)
            case "Gather" if inputs[1] in self._rows:
                self._names[out] = inputs[0]
            case "ScatterND" if inputs[1] in self._rows:
                self._add_up(inputs[0], inputs[2], out)
            case _:
                assert not self._rows.intersection(inputs), f"{node.op} reads rows of an expert"
                self.nodes.append(replace(node, inputs=inputs))

    def _add_up(self, total: str, scaled: str, out: str) -> None:
        """What float16 cannot hold may be infinite in a row that is no expert's own; times 0 that
        were no number, so such rows are replaced and not multiplied."""
        product = self.nodes[-1]
        assert product.op == "Mul" and product.outputs == (scaled,), "results times factors"
        sent, own = f"{scaled}.sent", f"{scaled}.own"
        factor = product.inputs[1]
        self.nodes.append(Node("Cast", (factor,), (sent,), {"to": CODES["bool"]}))
        self.nodes.append(Node("Where", (sent, scaled, ZERO), (own,)))
        self.nodes.append(Node("Add", (total, own), (out,)))
