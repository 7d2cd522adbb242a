"""Small graphs made by the onnx package: our reader and our rules know nothing of it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from compile.onnx_lint import Finding, lint, read_onnx

FLOAT, FLOAT16, INT64 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64
IN, OUT = 64, 32


def value(name: str, dtype: int = FLOAT, shape: Sequence[int | str] = ("T", IN)) -> Any:
    return helper.make_tensor_value_info(name, dtype, shape)


def tensor(name: str, dtype: int, shape: Sequence[int], fill: int = 0) -> Any:
    """Of a type that NumPy lacks: its bytes are all `fill`."""
    narrow = (TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1)
    bits = 4 if dtype in narrow else 8
    size = (int(np.prod(shape)) * bits + 7) // 8
    return TensorProto(name=name, data_type=dtype, dims=shape, raw_data=bytes([fill]) * size)


def array(name: str, values: npt.NDArray[Any]) -> Any:
    return numpy_helper.from_array(values, name)


def scales(name: str = "s", groups: int = 2) -> Any:
    return array(name, np.ones((groups, OUT), np.float32))


def node(op: str, inputs: Sequence[str], output: str, domain: str = "", **attributes: Any) -> Any:
    return helper.make_node(op, inputs, [output], output, domain=domain, **attributes)


def save(
    path: Path,
    nodes: Sequence[Any],
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    tensors: Sequence[Any] = (),
    *,
    opsets: Mapping[str, int] = {"": 24},
    ir_version: int = 10,
    functions: Sequence[Any] = (),
) -> Path:
    graph = helper.make_graph(nodes, "graph", inputs, outputs, tensors)
    model = helper.make_model(
        graph,
        ir_version=ir_version,
        opset_imports=[helper.make_opsetid(*item) for item in opsets.items()],
        functions=functions,
        producer_name="someone",
    )
    path.write_bytes(model.SerializeToString())
    return path


def found(path: Path) -> dict[str, Finding]:
    """Findings by rule and target, e.g. "L5 tensorrt"; of each kind the first."""
    result: dict[str, Finding] = {}
    for finding in lint(read_onnx(path)):
        result.setdefault(f"{finding.rule} {'+'.join(finding.targets)}", finding)
    return result


def external(name: str, location: str, **place: int) -> Any:
    """A float32 [4, 4] that is said to lie elsewhere."""
    proto = TensorProto(name=name, data_type=FLOAT, dims=[4, 4], data_location=TensorProto.EXTERNAL)
    for key, entry in (("location", location), *place.items()):
        proto.external_data.add(key=key, value=str(entry))
    return proto


def load(path: Path) -> Any:
    return onnx.load(str(path), load_external_data=False)
