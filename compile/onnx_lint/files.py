"""Rules about the file: who can read it, and whether its weights lie where they may."""

from collections.abc import Iterator

from compile.external_data import MisplacedError, check_bounds, external_size
from compile.onnx_bytes import bytes_of
from compile.onnx_lint.findings import BOTH, ORT, TRT, Said
from compile.onnx_lint.graph import BITS, OnnxGraph, Place, Tensor

MAX_OPSET, MAX_IR = 26, 13
"""What ONNX Runtime 1.31 reads."""
BUILT_IN = frozenset(
    {
        *("", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview", "ai.onnx.preview.training"),
        *("com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc", "org.pytorch.aten"),
    }
)
"""Domains whose operations ONNX Runtime brings along."""
NOT_IN_TENSORRT = frozenset({"MatMulInteger", "DynamicQuantizeLinear", "Unique", "BitCast"})
MAX_INLINE_BYTES = 2 << 30


def file_rules(graph: OnnxGraph) -> Iterator[Said]:
    """L9, L14 and L16."""
    yield from _versions(graph)
    yield from _domains(graph)
    yield from _external(graph)


def _versions(graph: OnnxGraph) -> Iterator[Said]:
    opset = graph.opsets.get("", 0)
    for what, found, most in (
        ("opset", opset, MAX_OPSET),
        ("IR version", graph.ir_version, MAX_IR),
    ):
        if found > most:
            yield Said(
                "L9",
                "refused",
                ORT,
                graph.path.name,
                f"{what} {found} is newer than ONNX Runtime 1.31 reads ({most})",
                "export with opset 24 and IR version 10, which every reader of today takes",
            )


def _domains(graph: OnnxGraph) -> Iterator[Said]:
    for node in graph.nodes:
        if node.domain == "" and node.op in NOT_IN_TENSORRT:
            yield Said(
                "L14",
                "refused",
                TRT,
                node.label,
                f"TensorRT has no {node.op}",
                "export for TensorRT without it: rounded inputs as QuantizeLinear with a stored "
                "scale, or not at all",
            )
        if node.domain == "" or node.domain in graph.functions:
            continue
        if node.domain in BUILT_IN:
            yield Said(
                "L14",
                "refused",
                TRT,
                node.label,
                f"{node.domain}.{node.op} is ONNX Runtime's own: TensorRT has no such operation",
                "export standard operations for TensorRT",
            )
        else:
            yield Said(
                "L14",
                "refused",
                BOTH,
                node.label,
                f"operations of '{node.domain}' need a library of custom operations, which is code "
                "that coldpress never loads",
                "export standard operations",
            )


def _external(graph: OnnxGraph) -> Iterator[Said]:
    for name, tensor in graph.tensors.items():
        problem = _misplaced(graph, tensor, tensor.place) if tensor.place else None
        if tensor.inline_bytes >= MAX_INLINE_BYTES:
            problem = "a tensor of 2 GB or more lies within the graph, which no protobuf can hold"
        if problem is not None:
            fix = "keep weights in one plain file beside the graph, as large as the graph says"
            yield Said("L16", "refused", BOTH, name, problem, fix)


def _misplaced(graph: OnnxGraph, tensor: Tensor, place: Place) -> str | None:
    try:
        size = external_size(graph.path, place.location)
        length = place.length if place.length is not None else _nbytes(tensor)
        check_bounds(place.offset, length, size)
    except MisplacedError as error:
        return str(error)
    return None


def _nbytes(tensor: Tensor) -> int:
    return bytes_of(tensor.shape, BITS.get(tensor.dtype, 8))
