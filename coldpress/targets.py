"""What `--target` asks for, and who writes it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from coldpress import __version__
from quant.format.errors import InputError

Progress = Callable[[int, int, str], None]
Kind = Literal["gguf", "onnx"]

PAYLOAD = "model.gguf"


@dataclass(frozen=True)
class Target:
    """type_name: of the container's own; "auto" follows the checkpoint."""

    kind: Kind
    type_name: str


@dataclass(frozen=True)
class Built:
    """types: of each tensor in the container, by name."""

    types: Mapping[str, str]
    notes: tuple[str, ...]


def parse_target(target: str) -> Target:
    """The target that `--target KIND[:TYPE]` names. Raises InputError for one that is not known."""
    kind, _, detail = target.partition(":")
    if kind == "gguf":
        return Target("gguf", detail or "auto")
    if kind == "onnx":
        return Target("onnx", detail or "auto")
    if kind == "tensorrt":
        raise InputError(f"target '{target}' is not yet supported; use gguf:TYPE or onnx:TYPE")
    raise InputError(f"target '{target}' is unknown; use gguf, gguf:TYPE, onnx or onnx:TYPE")


def write_payload(
    target: Target, checkpoint: Path, directory: Path, on_progress: Progress | None
) -> Built:
    """Write the container of `checkpoint` into `directory`; raises what its builder raises."""
    if target.kind == "onnx":
        from compile.to_onnx.build import build_onnx

        onnx = build_onnx(
            checkpoint, directory, target.type_name, version=__version__, on_progress=on_progress
        )
        return Built({row.tensor: row.form.dtype for row in onnx.rows}, onnx.notes)
    from compile.to_gguf.build import build_gguf

    gguf = build_gguf(checkpoint, directory / PAYLOAD, target.type_name, on_progress)
    return Built({row.tensor: row.type.name for row in gguf.rows}, gguf.notes)


def plan_payload(target: Target, checkpoint: Path) -> dict[str, Any]:
    """What `write_payload` would write: exact size, and every tensor's type with its reason."""
    if target.kind == "onnx":
        from compile.to_onnx.plan import plan_onnx

        onnx = plan_onnx(checkpoint, target.type_name, __version__)
        rows = [
            (row.tensor, row.shape, row.scheme, row.form.dtype, row.nbytes, row.form.reason)
            for row in onnx.rows
        ]
        figures = (onnx.program.family, onnx.file_bytes, onnx.bits_per_weight, onnx.notes)
    else:
        from compile.to_gguf.plan import plan_gguf

        gguf = plan_gguf(checkpoint, target.type_name)
        rows = [
            (row.tensor, row.shape, row.scheme, row.type.name, row.nbytes, row.reason)
            for row in gguf.rows
        ]
        figures = (gguf.program.family, gguf.file_bytes, gguf.bits_per_weight, gguf.notes)
    family, file_bytes, bits_per_weight, notes = figures
    columns = ("tensor", "shape", "scheme", "type", "bytes", "reason")
    return {
        "family": family,
        "bytes": file_bytes,
        "bits_per_weight": bits_per_weight,
        "notes": list(notes),
        "tensors": [
            dict(zip(columns, (row[0], list(row[1]), *row[2:]), strict=True)) for row in rows
        ],
    }
