"""What follows from a graph without running it: types, and where values come from."""

from collections.abc import Iterator

from compile.onnx_lint.graph import DTYPES, Node, OnnxGraph, Tensor

SAME_VALUES = frozenset({"Identity", "Reshape", "Unsqueeze", "Squeeze", "Flatten", "Transpose"})
"""Operations that only lay the numbers of their first input out in another way."""
ELEMENTWISE = SAME_VALUES | {"Cast", "Mul", "Div", "Add", "Sub", "Tanh", "Clip"}
PRODUCTS = frozenset({"MatMul", "Gemm", "MatMulNBits", "FusedMatMul", "MatMulInteger", "QGemm"})
ROW_PICKERS = frozenset({"Gather", "GatherND", "GatherElements", "Slice", "Compress"})
BOOLEAN = frozenset({"Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or"})
MAX_STEPS = 64
"""How far a value is followed."""


class Facts:
    """Answers about one graph."""

    def __init__(self, graph: OnnxGraph) -> None:
        self.graph = graph
        self._dtypes: dict[str, str] = {
            **{name: value.dtype for name, value in graph.values.items()},
            **{name: tensor.dtype for name, tensor in graph.tensors.items()},
        }
        for node in graph.nodes:
            self._infer(node)

    def dtype(self, name: str) -> str:
        """`undefined` where it does not follow."""
        return self._dtypes.get(name, "undefined")

    def _infer(self, node: Node) -> None:
        dtype = self._result(node)
        for name in node.outputs:
            if self._dtypes.get(name, "undefined") == "undefined":
                self._dtypes[name] = dtype

    def _result(self, node: Node) -> str:
        match node.op:
            case "Cast":
                return DTYPES.get(node.number("to", 0), "undefined")
            case "QuantizeLinear":
                stored = DTYPES.get(node.number("output_dtype", 0), "undefined")
                zero = self.dtype(node.input(2))
                return stored if stored != "undefined" else zero if zero != "undefined" else "uint8"
            case "DequantizeLinear" | "Where":
                return self.dtype(node.input(1))
            case "Shape" | "Size" | "NonZero" | "ArgMax":
                return "int64"
            case "MatMulInteger":
                return "int32"
            case op if op in BOOLEAN:
                return "bool"
            case _:
                return self.dtype(node.input(0))

    def stored(self, name: str) -> Tensor | None:
        """The tensor of the file that a value is, but for its layout."""
        for _ in range(MAX_STEPS):
            if name in self.graph.tensors:
                return self.graph.tensors[name]
            node = self.graph.maker.get(name)
            if node is None or node.op not in SAME_VALUES:
                return None
            name = node.input(0)
        return None

    def dequantized(self, name: str) -> tuple[Node, bool] | None:
        """The DequantizeLinear of a stored tensor that a value comes from, and whether it is turned
        on the way."""
        turned = False
        for _ in range(MAX_STEPS):
            node = self.graph.maker.get(name)
            if node is None:
                return None
            if node.op == "DequantizeLinear":
                return (node, turned) if self.stored(node.input(0)) else None
            if node.op not in SAME_VALUES and node.op != "Cast":
                return None
            turned ^= node.op == "Transpose"
            name = node.input(0)
        return None

    def above(self, name: str, through: frozenset[str]) -> Iterator[Node]:
        """The nodes on the way up from a value, by first inputs that are no stored tensors, as long
        as they are of these operations; and the one that ends it."""
        for _ in range(MAX_STEPS):
            node = self.graph.maker.get(name)
            if node is None:
                return
            yield node
            if node.op not in through:
                return
            name = next((n for n in node.inputs if n and self.stored(n) is None), "")

    def weight_shape(self, node: Node) -> tuple[int, int] | None:
        """(in, out) of a product with a stored matrix, None where it has none."""
        if node.op == "MatMulNBits":
            return node.number("K", 0), node.number("N", 0)
        name = node.input(1)
        found = self.dequantized(name)
        tensor = self.stored(found[0].input(0)) if found else self.stored(name)
        if tensor is None:
            tensor = self._cast_from(name)
        if tensor is None or len(tensor.shape) != 2:
            return None
        turned = bool(node.number("transB", 0)) ^ (found[1] if found else self._turned(name))
        rows, columns = tensor.shape
        return (columns, rows) if turned else (rows, columns)

    def _cast_from(self, name: str) -> Tensor | None:
        node = self.graph.maker.get(name)
        return self.stored(node.input(0)) if node is not None and node.op == "Cast" else None

    def _turned(self, name: str) -> bool:
        ways = [node.op for node in self.above(name, SAME_VALUES | {"Cast"})]
        return ways.count("Transpose") % 2 == 1
