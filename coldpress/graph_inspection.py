"""What is in anybody's ONNX graph, and what its readers will make of it."""

from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compile.onnx_contract import CONTRACT, GRAPH_FILE

if TYPE_CHECKING:
    from compile.onnx_lint import Finding, OnnxGraph

SUFFIX = ".onnx"


def graph_file(path: Path) -> Path | None:
    """The graph that `path` is or holds, None where there is none."""
    if path.suffix == SUFFIX and path.is_file():
        return path
    inner = path / GRAPH_FILE
    return inner if inner.is_file() else None


def is_ours(graph: "OnnxGraph") -> bool:
    """Whether it follows docs/ONNX.md, so that a Model can be opened of it."""
    return CONTRACT in graph.metadata


def inspect_graph(path: Path, graph: "OnnxGraph") -> dict[str, Any]:
    """The JSON of `coldpress inspect` for a graph of another maker."""
    from compile.onnx_bytes import bytes_of
    from compile.onnx_lint import lint
    from compile.onnx_lint.graph import BITS

    sizes = Counter[str]()
    for tensor in graph.tensors.values():
        known = all(size >= 0 for size in tensor.shape) and tensor.dtype in BITS
        sizes[tensor.dtype] += bytes_of(tensor.shape, BITS[tensor.dtype]) if known else 0
    return {
        "path": str(path),
        "kind": "onnx graph",
        "producer": graph.producer,
        "ir_version": graph.ir_version,
        "opsets": {domain or "ai.onnx": version for domain, version in graph.opsets.items()},
        "inputs": len(graph.network_inputs),
        "outputs": len(graph.outputs),
        "nodes": dict(Counter(node.op for node in graph.nodes).most_common()),
        "weights": {f"{dtype}_bytes": size for dtype, size in sorted(sizes.items())},
        "findings": findings_json(lint(graph)),
    }


def findings_json(findings: "list[Finding]") -> list[dict[str, Any]]:
    """count: of nodes."""
    return [
        asdict(finding) | {"nodes": list(finding.nodes), "count": len(finding.nodes)}
        for finding in findings
    ]
