"""Products with packed integers, and rows of tables of them, in the forms that TensorRT keeps
packed: codes are read by DequantizeLinear alone, scales are float16, and there are no zero points.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compile.onnx_contract import SCALE_SUFFIX, ZERO_POINT_SUFFIX
from compile.onnx_proto import Attribute, ExternalTensor
from compile.to_tensorrt.typed_nodes import TypedNodes


@dataclass(frozen=True)
class Quantized:
    """name: float16 [in, out], scale * code. offset: float16 [groups, out], scale * zero_point, to
    be subtracted from each row of its group; None for symmetric weights."""

    name: str
    groups: int
    offset: str | None


class QuantizedProducts:
    """tensors: the stored ones, by name."""

    def __init__(self, nodes: TypedNodes, tensors: Mapping[str, ExternalTensor]) -> None:
        self._nodes = nodes
        self._tensors = tensors
        self._known: dict[str, Quantized] = {}

    def dequantize(self, codes: str, attributes: Mapping[str, Attribute]) -> Quantized:
        """The stored matrix [in, out] of that name; attributes: those of its DequantizeLinear."""
        if codes not in self._known:
            scale = self._nodes.half_of_stored(f"{codes}{SCALE_SUFFIX}")
            out = f"{codes}.without_zero_points"
            self._nodes.add("DequantizeLinear", codes, scale, out=out, half=True, **attributes)
            shape = self._tensors[f"{codes}{SCALE_SUFFIX}"].shape
            groups = shape[0] if len(shape) == 2 else 1
            self._known[codes] = Quantized(out, groups, self._offset(codes, scale, len(shape)))
        return self._known[codes]

    def multiply(self, x: str, weight: Quantized, bias: Sequence[str], out: str) -> None:
        """out [T, out_features] = x @ weight + bias; float32 where there are zero points."""
        nodes, half = self._nodes, self._nodes.half(x)
        if weight.offset is None:
            nodes.add("Gemm", half, weight.name, *bias, out=out, half=True)
            return
        nodes.add("Gemm", half, weight.name, *bias, out=f"{out}.codes", half=True)
        # Of x as it was rounded, so that q and q - z are multiplied by the same.
        runs, x = nodes.integers(0, weight.groups, -1), nodes.full(half)
        grouped = nodes.add("Reshape", x, runs, out=f"{out}.grouped", half=False)
        axes = nodes.integers(2)
        sums = nodes.add("ReduceSum", grouped, axes, out=f"{out}.sums", half=False, keepdims=0)
        product = nodes.add("Gemm", nodes.half(sums), weight.offset, out=f"{out}.zeros", half=True)
        codes = nodes.full(f"{out}.codes")
        nodes.add("Sub", codes, nodes.full(product), out=out, half=False)

    def rows(self, table: Quantized, indices: str, out: str) -> None:
        """out float32 [in, T]: the columns of the table [in, out] that `indices` name."""
        nodes = self._nodes
        columns = nodes.add("Gather", table.name, indices, out=f"{out}.codes", half=True, axis=1)
        if table.offset is None:
            nodes.cast(columns, out, "float32")
            return
        offset = nodes.add("Gather", table.offset, indices, out=f"{out}.zeros", half=True, axis=1)
        # [groups, group, T] less [groups, 1, T]
        full, one = nodes.full(offset), nodes.integers(1)
        apart = nodes.add("Unsqueeze", full, one, out=f"{out}.apart", half=False)
        shape = nodes.add("Shape", columns, out=f"{out}.shape", half=False)
        runs = self._runs(table, shape, out)
        grouped = nodes.add("Reshape", nodes.full(columns), runs, out=f"{out}.grouped", half=False)
        full = nodes.add("Sub", grouped, apart, out=f"{out}.full", half=False)
        nodes.add("Reshape", full, shape, out=out, half=False)

    def _runs(self, table: Quantized, shape: str, out: str) -> str:
        """int64 [3]: groups, columns of each, T."""
        nodes = self._nodes
        last = nodes.add("Gather", shape, nodes.integers(1), out=f"{out}.count", half=False, axis=0)
        first = nodes.integers(table.groups, -1)
        return nodes.add("Concat", first, last, out=f"{out}.runs", half=False, axis=0)

    def _offset(self, codes: str, scale: str, dimensions: int) -> str | None:
        """TensorRT reads integers by DequantizeLinear alone, hence one with a scale of 1."""
        stored = f"{codes}{ZERO_POINT_SUFFIX}"
        if stored not in self._tensors:
            return None
        nodes = self._nodes
        zeros = nodes.add("DequantizeLinear", stored, nodes.one(), out=f"{stored}.half", half=True)
        offset = nodes.add("Mul", zeros, scale, out=f"{codes}.offset", half=True)
        if dimensions == 2:
            return offset
        return nodes.add("Unsqueeze", offset, nodes.integers(0), out=f"{offset}.row", half=True)
