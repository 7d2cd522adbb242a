"""The decoder step as TensorRT multiplies it: products and attention in float16, the rest in
float32. The weights' bytes stay as they are, so both graphs read the same file.

TensorRT has fused attention and packed integer products for 16-bit floats alone. What needs range
or precision stays in float32: the residual stream, norms, rotations, activations, logits. What
enters a product is rounded to float16 just before it, as is what leaves it.
"""

from collections.abc import Iterable
from dataclasses import replace

from compile.onnx_bytes import FP8
from compile.onnx_contract import LOOKED_UP_SUFFIX, SCALE_SUFFIX
from compile.onnx_proto import Graph, Node, Port
from compile.to_tensorrt.quantized import Quantized, QuantizedProducts
from compile.to_tensorrt.typed_nodes import TypedNodes

PACKED = ("int4", "int8", FP8)
FLOATS = ("float32", "float16", "bfloat16")
FOLLOWS_ITS_INPUT = ("Reshape", "Squeeze", "Unsqueeze", "Transpose", "Concat", "Gather")
"""Operations that only move numbers, whatever their type."""
TAKES_ANY_TYPE = ("Shape",)


def in_halves(graph: Graph) -> Graph:
    """The same step for TensorRT: pools and new rows are float16, logits stay float32.

    Integers with zero points, which TensorRT refuses, are multiplied without them, and
    groupsum(x) @ (scale * zero_point) is subtracted: the same number, in another order.
    """
    inputs = tuple(_half_port(port) for port in graph.inputs)
    outputs = tuple(replace(p, dtype="float16") if p.shape[0] == "T" else p for p in graph.outputs)
    rewriting = _Rewriting(replace(graph, inputs=inputs, outputs=outputs))
    for node in graph.nodes:
        rewriting.add(node)
    nodes = _needed(rewriting.nodes.nodes, {port.name for port in outputs})
    used = {name for node in nodes for name in node.inputs}
    # Second names exist for readers who look up integers before they dequantize them.
    second = {t.name for t in graph.tensors if t.name.endswith(LOOKED_UP_SUFFIX)}
    kept = tuple(t for t in graph.tensors if t.name not in second - used)
    constants = {**graph.constants, **rewriting.nodes.constants}
    return replace(
        graph,
        inputs=inputs,
        outputs=outputs,
        nodes=tuple(nodes),
        tensors=kept,
        constants={name: value for name, value in constants.items() if name in used},
    )


def _half_port(port: Port) -> Port:
    return replace(port, dtype="float16") if port.dtype == "float32" else port


def _needed(nodes: Iterable[Node], wanted: set[str]) -> list[Node]:
    """The nodes that a wanted value comes from, in their order."""
    kept, wanted = [], set(wanted)
    for node in reversed(list(nodes)):
        if wanted.intersection(node.outputs):
            kept.append(node)
            wanted.update(node.inputs)
    return kept[::-1]


class _Rewriting:
    """Takes the nodes one by one. Values keep their names, and have one type more where needed."""

    def __init__(self, graph: Graph) -> None:
        self._outputs = {port.name: port.dtype for port in graph.outputs}
        self._tensors = {tensor.name: tensor for tensor in graph.tensors}
        halves = {port.name for port in graph.inputs if port.dtype == "float16"}
        self.nodes = TypedNodes(halves)
        self._quantized = QuantizedProducts(self.nodes, self._tensors)
        self._weights: dict[str, Quantized] = {}
        self._looked_up: dict[str, tuple[str, str]] = {}
        self._stored_floats: dict[str, str] = {
            name: name for name, tensor in self._tensors.items() if tensor.dtype in FLOATS
        }

    def add(self, node: Node) -> None:
        match node.op:
            case "DequantizeLinear":
                self._dequantize(node)
            case "Gemm":
                self._multiply(node)
            case "Attention":
                self._attend(node)
            case "Gather" if node.inputs[0] in self._tensors:
                self._look_up(node)
            case "Cast" if node.inputs[0] in self._stored_floats:
                self._stored_floats[node.outputs[0]] = node.inputs[0]
                self.nodes.append(node)
            case op if op in TAKES_ANY_TYPE:
                self.nodes.append(node)
            case op if op in FOLLOWS_ITS_INPUT:
                self._move(node)
            case _:
                self.nodes.append(replace(node, inputs=tuple(map(self.nodes.full, node.inputs))))

    def _dequantize(self, node: Node) -> None:
        data = node.inputs[0]
        if data in self._looked_up:
            table, indices = self._looked_up[data]
            weight = self._quantized.dequantize(table, node.attributes)
            self._quantized.rows(weight, indices, node.outputs[0])
            return
        assert self._tensors[data].dtype in PACKED, f"{data} is dequantized and not stored"
        self._weights[node.outputs[0]] = self._quantized.dequantize(data, node.attributes)

    def _look_up(self, node: Node) -> None:
        """Of integers, TensorRT looks up those that are dequantized already, and keeps them packed
        all the same. A table of floats that is multiplied as well is one table in float16."""
        part, indices, out = *node.inputs, node.outputs[0]
        if part in self._stored_floats and not part.endswith(SCALE_SUFFIX):
            half = self.nodes.half_of_stored(part)
            self.nodes.append(Node("Gather", (half, indices), (out,), node.attributes), half=True)
            return
        self._looked_up[out] = (part.removesuffix(LOOKED_UP_SUFFIX), indices)

    def _multiply(self, node: Node) -> None:
        (x, weight, *bias), out = node.inputs, node.outputs[0]
        product = f"{out}.product" if out in self._outputs else out
        halves = [self.nodes.half_of_stored(self._stored_floats[name]) for name in bias]
        if weight in self._weights:
            self._quantized.multiply(x, self._weights[weight], halves, product)
        else:
            stored = self.nodes.half_of_stored(self._stored_floats[weight])
            inputs = (self.nodes.half(x), stored, *halves)
            self.nodes.append(Node("Gemm", inputs, (product,), node.attributes), half=True)
        if product != out:
            self.nodes.cast(product, out, "float32")

    def _attend(self, node: Node) -> None:
        *rows, mask = node.inputs
        inputs = (*map(self.nodes.half, rows), mask)
        self.nodes.append(replace(node, inputs=inputs), half=True)

    def _move(self, node: Node) -> None:
        moved = len(node.inputs) if node.op == "Concat" else 1
        wanted = self._outputs.get(node.outputs[0])
        half = wanted == "float16" or any(map(self.nodes.is_half, node.inputs[:moved]))
        if not half:
            self.nodes.append(node)
            return
        first = tuple(map(self.nodes.half, node.inputs[:moved]))
        self.nodes.append(replace(node, inputs=(*first, *node.inputs[moved:])), half=True)
