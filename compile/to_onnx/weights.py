"""Weights in the graph, and products with them."""

from collections.abc import Mapping

from compile.onnx_contract import SCALE_SUFFIX, ZERO_POINT_SUFFIX
from compile.to_onnx.nodes import Nodes
from compile.to_onnx.types import Form

FLOAT = 1
"""TensorProto.FLOAT, the type that everything is computed in."""


class WeightNodes:
    """Brings stored weights to float32 where nodes read them."""

    def __init__(self, nodes: Nodes, forms: Mapping[str, Form]) -> None:
        self._nodes = nodes
        self._forms = forms
        self._floats: dict[str, str] = {}

    def floats(self, name: str) -> str:
        """The whole weight in float32. Readers fold the Cast of a constant when they load."""
        if self._forms[name].dtype == "float32":
            return name
        if name not in self._floats:
            self._floats[name] = self._nodes.add("Cast", name, out=f"{name}.float32", to=FLOAT)
        return self._floats[name]

    def rows(self, name: str, indices: str, out: str) -> str:
        """float32 [T, in]: the rows of a table that `indices` name."""
        if self._forms[name].dtype == "float32":
            return self._nodes.add("Gather", name, indices, out=out, axis=0)
        stored = self._nodes.add("Gather", name, indices, out=f"{out}.stored", axis=0)
        return self._nodes.add("Cast", stored, out=out, to=FLOAT)

    def multiply(self, x: str, name: str, bias: str | None, out: str) -> str:
        """x @ weight.T + bias.

        Integers lie as [in, out], the one layout whose DequantizeLinear ONNX Runtime turns into a
        product of packed integers. It is Gemm and not MatMul, because ONNX Runtime would join a
        MatMul with the residual sum behind it, and then unpack the whole weight in every step.
        """
        form, nodes = self._forms[name], self._nodes
        added = [] if bias is None else [self.floats(bias)]
        if form.group is None:
            return nodes.add("Gemm", x, self.floats(name), *added, out=out, transB=1)
        inputs = [name, f"{name}{SCALE_SUFFIX}"]
        inputs += [f"{name}{ZERO_POINT_SUFFIX}"] if form.zero_points else []
        along = {"axis": 0, "block_size": form.group} if form.group else {"axis": 1}
        weight = nodes.add("DequantizeLinear", *inputs, out=f"{name}.dequantized", **along)
        return nodes.add("Gemm", x, weight, *added, out=out)
