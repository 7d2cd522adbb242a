"""What `--target` asks for, and who writes it."""

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from coldpress import __version__
from quant.format.errors import InputError

if TYPE_CHECKING:
    from coldpress.sources import Source
    from compile.model import Model

Progress = Callable[[int, int, str], None]
Kind = Literal["gguf", "onnx", "tensorrt", "triton"]

AS_STORED = "fp8"
"""The ONNX type that TensorRT is given: what `auto` takes, and FP8, which is slow elsewhere."""
PAYLOAD, CONFIG = "model.gguf", "config.json"


@dataclass(frozen=True)
class Target:
    """type_name: of the container's own; "auto" follows the checkpoint; for Triton, the name that
    the model is to have. cards: compute capabilities that an engine is for, none for the GPU of
    this machine."""

    kind: Kind
    type_name: str
    cards: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.kind}:{'+'.join(self.cards)}" if self.cards else self.kind


@dataclass(frozen=True)
class Built:
    """types: of each tensor in the container, by name. engine: facts for the manifest."""

    types: Mapping[str, str]
    notes: tuple[str, ...]
    engine: Mapping[str, Any] | None = None


def parse_target(target: str) -> Target:
    """The target that `--target KIND[:TYPE]` names. Raises InputError for one that is not known."""
    kind, _, detail = target.partition(":")
    if kind == "gguf":
        return Target("gguf", detail or "auto")
    if kind == "onnx":
        return Target("onnx", detail or "auto")
    if kind == "tensorrt":
        from compile.to_tensorrt.cards import parse_cards

        return Target("tensorrt", "auto", parse_cards(detail) if detail else ())
    if kind == "triton":
        return Target("triton", detail)
    raise InputError(
        f"target '{target}' is unknown; use gguf, gguf:TYPE, onnx, onnx:TYPE, tensorrt:smNN, "
        "tensorrt or triton"
    )


def write_payload(
    target: Target, source: "Source", directory: Path, on_progress: Progress | None
) -> Built:
    """Write the container of `source` into `directory`; raises what its builder raises."""
    if target.kind == "tensorrt":
        return _write_engine(target, source, directory, on_progress)
    if target.kind == "onnx":
        from compile.to_onnx.build import build_model

        onnx = build_model(
            source.model(),
            directory,
            target.type_name,
            version=__version__,
            round_inputs=True,
            on_progress=on_progress,
        )
        return Built({row.tensor: row.form.dtype for row in onnx.rows}, onnx.notes)
    from compile.to_gguf import build_model as build_gguf

    model, path = source.checkpoint_model(), directory / PAYLOAD
    gguf = build_gguf(model, path, target.type_name, on_progress)
    return Built({row.tensor: row.type.name for row in gguf.rows}, gguf.notes)


def _write_engine(
    target: Target, source: "Source", directory: Path, on_progress: Progress | None
) -> Built:
    """The ONNX graph with its weights, and the engine that is built from it; for an artifact that
    has an engine already, an engine from the graph that it keeps."""
    from compile.to_tensorrt.api import BuildApi
    from compile.to_tensorrt.build import build_engine

    api, model = BuildApi(here=not target.cards), source.model()
    cards = target.cards or (_card_here(),)
    write = _copy_graph if model.kind == "tensorrt" else _write_graph
    types, notes = write(target, model, directory, on_progress)
    engine = build_engine(directory, model.program, str(target), api, cards, on_progress)
    return Built(types, (*notes, *engine.notes), engine.facts.to_json())


def _card_here() -> str:
    """Raises InputError where there is no GPU."""
    from runtime.executors.tensorrt.cuda import CudaDevice

    device = CudaDevice()
    device.close()
    return device.card


def _write_graph(
    target: Target, model: "Model", directory: Path, on_progress: Progress | None
) -> tuple[Mapping[str, str], tuple[str, ...]]:
    from compile.to_onnx.build import build_model
    from compile.to_onnx.plan import plan_model
    from compile.to_tensorrt.build import use_halves
    from compile.to_tensorrt.cards import check_types

    plan = plan_model(model, AS_STORED, __version__)
    types = {row.tensor: row.form.dtype for row in plan.rows}
    check_types(target.cards, types)
    build_model(model, directory, AS_STORED, version=__version__, on_progress=on_progress)
    use_halves(directory, __version__)
    return types, plan.notes


def _copy_graph(
    target: Target, model: "Model", directory: Path, on_progress: Progress | None
) -> tuple[Mapping[str, str], tuple[str, ...]]:
    from compile.manifest import read_manifest
    from compile.onnx_contract import DATA_FILE, GRAPH_FILE
    from compile.to_tensorrt.cards import check_types

    assert model.directory is not None, "an engine lies in a directory"
    types = read_manifest(model.directory).modules or {}
    check_types(target.cards, types)
    for index, name in enumerate((GRAPH_FILE, DATA_FILE, CONFIG)):
        if on_progress is not None:
            on_progress(index, 3, name)
        shutil.copyfile(model.directory / name, directory / name)
    return types, ()


def plan_payload(target: Target, source: "Source") -> dict[str, Any]:
    """What `write_payload` would write: exact size, and every tensor's type with its reason."""
    if target.kind == "triton":
        raise InputError("a Triton repository holds an artifact as it is; plan that one's target")
    if target.kind != "gguf":
        from compile.to_onnx.plan import plan_model
        from compile.to_tensorrt.cards import check_types

        for_engine = target.kind == "tensorrt"
        type_name = AS_STORED if for_engine else target.type_name
        rounds = not for_engine
        onnx = plan_model(source.model(), type_name, __version__, round_inputs=rounds)
        rows = [
            (row.tensor, row.shape, row.scheme, row.form.dtype, row.nbytes, row.form.reason)
            for row in onnx.rows
        ]
        notes = onnx.notes
        if for_engine:
            check_types(target.cards, {row.tensor: row.form.dtype for row in onnx.rows})
            notes += (
                "the engine holds the same types once more, and 9 to 13 KB for each operation",
            )
        figures = (onnx.program.family, onnx.file_bytes, onnx.bits_per_weight, notes)
    else:
        from compile.to_gguf import plan_model as plan_gguf

        gguf = plan_gguf(source.checkpoint_model(), target.type_name)
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
