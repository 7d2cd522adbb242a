"""Weights in the graph, and products with them."""

from collections.abc import Collection, Mapping

from compile.onnx_contract import LOOKED_UP_SUFFIX, ORDER_SUFFIX, SCALE_SUFFIX, ZERO_POINT_SUFFIX
from compile.to_onnx.inputs import ZERO, InputNodes, has_integers
from compile.to_onnx.nodes import Nodes
from compile.to_onnx.types import Form
from quant.format.scheme import ActivationScheme

FLOAT = 1
"""TensorProto.FLOAT, the type that everything is computed in."""


def second_name(part: str) -> str:
    """Of a tensor whose bytes are another's: ONNX Runtime packs none that is looked up as well."""
    return f"{part}{LOOKED_UP_SUFFIX}"


def _is_integer_product(form: Form, inputs: ActivationScheme) -> bool:
    whole = form.dtype == "int8" and form.group == 0 and not form.zero_points
    return whole and has_integers(inputs)


class WeightNodes:
    """Brings stored weights to float32 where nodes read them.

    second_names: weights that are looked up under second names of their parts.
    """

    def __init__(
        self, nodes: Nodes, forms: Mapping[str, Form], second_names: Collection[str]
    ) -> None:
        self._nodes = nodes
        self._forms = forms
        self._second_names = second_names
        self._floats: dict[str, str] = {}
        self._inputs = InputNodes(nodes)

    def floats(self, name: str) -> str:
        """The whole weight in float32. Readers fold the Cast of a constant when they load."""
        if self._forms[name].dtype == "float32":
            return name
        if name not in self._floats:
            self._floats[name] = self._nodes.add("Cast", name, out=f"{name}.float32", to=FLOAT)
        return self._floats[name]

    def rows(self, name: str, indices: str, out: str) -> str:
        """float32 [T, in]: the rows of a table that `indices` name."""
        form, nodes = self._forms[name], self._nodes
        if form.group is not None:
            found = [
                nodes.add("Gather", part, indices, out=f"{out}.{index}", axis=-1)
                for index, part in enumerate(self._parts(name))
                for part in [second_name(part) if name in self._second_names else part]
            ]
            columns = self._dequantize(found, form, f"{out}.columns")
            return nodes.add("Transpose", columns, out=out)
        if form.dtype == "float32":
            return nodes.add("Gather", name, indices, out=out, axis=0)
        stored = nodes.add("Gather", name, indices, out=f"{out}.stored", axis=0)
        return nodes.add("Cast", stored, out=out, to=FLOAT)

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
        if form.inputs is not None:
            if _is_integer_product(form, form.inputs):
                return self._multiply_integers(x, name, form.inputs, added, out)
            x = self._inputs.floats(x, name, form.inputs)
        if form.ordered:
            x = nodes.add("Gather", x, f"{name}{ORDER_SUFFIX}", out=f"{out}.ordered", axis=1)
        weight = self._dequantize(self._parts(name), form, f"{name}.dequantized")
        return nodes.add("Gemm", x, weight, *added, out=out)

    def _multiply_integers(
        self, x: str, name: str, inputs: ActivationScheme, added: list[str], out: str
    ) -> str:
        """Sums of products of integers are exact, whatever their order."""
        nodes = self._nodes
        codes, scale = self._inputs.integers(x, name, inputs)
        sums = nodes.add("MatMulInteger", codes, name, nodes.byte(ZERO), out=f"{out}.sums")
        floats = nodes.add("Cast", sums, out=f"{out}.floats", to=FLOAT)
        rows = nodes.add("Mul", floats, scale, out=f"{out}.rows")
        if not added:
            return nodes.add("Mul", rows, f"{name}{SCALE_SUFFIX}", out=out)
        plain = nodes.add("Mul", rows, f"{name}{SCALE_SUFFIX}", out=f"{out}.plain")
        return nodes.add("Add", plain, *added, out=out)

    def _parts(self, name: str) -> list[str]:
        """Codes [in, out], scales, and zero points where there are any: [groups, out] or [out]."""
        zeros = [f"{name}{ZERO_POINT_SUFFIX}"] if self._forms[name].zero_points else []
        return [name, f"{name}{SCALE_SUFFIX}", *zeros]

    def _dequantize(self, parts: list[str], form: Form, out: str) -> str:
        along = {"axis": 0, "block_size": form.group} if form.group else {"axis": 1}
        return self._nodes.add("DequantizeLinear", *parts, out=out, **along)
