"""What is in an artifact, from headers alone."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from coldpress.evaluation import sizes
from coldpress.graph_inspection import findings_json, graph_file, inspect_graph, is_ours
from quant.format.gguf_types import TYPE_BY_NAME
from quant.format.scheme import (
    CodebookScheme,
    FloatScheme,
    Granularity,
    PerBlock,
    PerTensor,
    Scheme,
)

if TYPE_CHECKING:
    from compile.model import Model

Kind = Literal["huggingface", "gguf", "onnx", "tensorrt"]


def inspect_model(path: Path) -> dict[str, Any]:
    """The JSON of `coldpress inspect`. Raises InputError for what cannot be opened.

    ONNX graphs of any maker are read; what their readers will make of them is in `findings`.
    """
    from compile.onnx_lint import lint, read_onnx
    from compile.open_model import open_model

    graph_path = graph_file(path)
    graph = None if graph_path is None else read_onnx(graph_path)
    if graph is not None and not is_ours(graph):
        return inspect_graph(path, graph)
    model = open_model(path)
    tensors = [
        _tensor(name, shape, model.weights.scheme(name), model.kind)
        for name, shape in model.program.weights().items()
    ]
    size, bits_per_weight = sizes(path, model)
    found = [] if graph is None or model.kind != "onnx" else findings_json(lint(graph))
    return {
        "path": str(path),
        "kind": model.kind,
        "family": model.program.family,
        "parameters": sum(prod(tensor["shape"]) for tensor in tensors),
        "bytes": size,
        "bits_per_weight": bits_per_weight,
        "sizes": asdict(model.program.sizes),
        "tied_embeddings": model.program.tied_embeddings,
        "tensors_by_scheme": _by_scheme(tensors),
        "matrices_in_memory": _in_memory(model),
        "notes": list(model.notes),
        "manifest": _manifest(path),
        "findings": found,
        "tensors": tensors,
    }


def _tensor(name: str, shape: tuple[int, ...], scheme: Scheme, kind: Kind) -> dict[str, Any]:
    size = stored_bytes(scheme, shape, kind)
    return {"name": name, "shape": list(shape), "scheme": str(scheme), "bytes": size}


def stored_bytes(scheme: Scheme, shape: tuple[int, ...], kind: Kind) -> int:
    """Bytes of a tensor's codes, scales and zero points (GGUF: 16-bit minimums).

    Scales count 16 bits (ONNX: 32), or 8 where the scheme says what they are stored as.
    """
    if isinstance(scheme, FloatScheme):
        return prod(shape) * scheme.num_bits // 8
    if scheme.ggml_type is not None:
        return TYPE_BY_NAME[scheme.ggml_type].nbytes(shape)
    rows, columns = shape
    narrow = isinstance(scheme, CodebookScheme) and scheme.scales != "float"
    scale_bits = 32 if kind in ("onnx", "tensorrt") else 8 if narrow else 16
    offset_bits = 0 if scheme.symmetric else 16 if kind == "gguf" else scheme.num_bits
    groups = _rows_of_scales(scheme.granularity, rows) * scheme.groups(columns)
    return (rows * columns * scheme.num_bits + groups * (scale_bits + offset_bits)) // 8


def _rows_of_scales(granularity: Granularity, rows: int) -> int:
    match granularity:
        case PerTensor():
            return 1
        case PerBlock(height, _):
            return -(-rows // height)
        case _:
            return rows


def _by_scheme(tensors: list[dict[str, Any]]) -> dict[str, int]:
    return dict(sorted(Counter(tensor["scheme"] for tensor in tensors).items()))


def _in_memory(model: "Model") -> dict[str, int]:
    """How many matrices the cpu backend holds in which form."""
    from runtime.executors.cpu.support import held_form

    schemes = [model.weights.scheme(n) for n, shape in model.program.weights().items() if shape[1:]]
    return dict(sorted(Counter(map(held_form, schemes)).items()))


def _manifest(path: Path) -> Mapping[str, Any] | None:
    """The story of an artifact without the list of its files; None for a model of other makers."""
    from compile.manifest import MANIFEST, read_manifest

    if not (path / MANIFEST).is_file():
        return None
    fields = asdict(read_manifest(path))
    fields["files"] = f"{len(fields['files'])} files"
    return {key: value for key, value in fields.items() if value}
