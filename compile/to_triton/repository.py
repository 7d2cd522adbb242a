"""A model repository for NVIDIA Triton: an artifact behind its python backend, its bare decoder.

The first answers text in a stream of responses, with our scheduler and pages: Triton's own state is
kept for each sequence, and a pool of pages is shared by all. The second is the graph alone, for
debugging: Triton copies what goes in and out, pages too.
"""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from compile.engine_file import ENGINE_FILE, read_facts
from compile.model import Model
from compile.onnx_contract import DATA_FILE, GRAPH_FILE
from compile.onnx_proto import Port, read_graph
from compile.to_triton.config import ANY, TritonModel, TritonTensor
from quant.format.errors import InputError

CONFIG, VERSION, ARTIFACT, SCRIPT, PLAN = "config.pbtxt", "1", "artifact", "model.py", "model.plan"
SCRIPT_TEXT = '''\
"""Answers with the artifact beside this file; coldpress must be installed in Triton's Python."""

from pathlib import Path

from coldpress.triton_model import Answering


class TritonPythonModel(Answering):
    artifact = Path(__file__).resolve().parent / "artifact"
'''
Progress = Callable[[int, int, str], None]


def text_model(name: str, on_gpu: bool) -> TritonModel:
    """Text in, text out. The names are those of Triton's generate endpoint and its other LLM
    backends; `coldpress.triton_model` reads them."""
    one, some = (1,), (ANY,)
    return TritonModel(
        name=name,
        backend="python",
        inputs=(
            TritonTensor("text_input", "string", one),
            TritonTensor("chat", "bool", one, optional=True),
            TritonTensor("stream", "bool", one, optional=True),
            TritonTensor("max_tokens", "int32", one, optional=True),
            TritonTensor("temperature", "float32", one, optional=True),
            TritonTensor("top_p", "float32", one, optional=True),
            TritonTensor("seed", "int64", one, optional=True),
            TritonTensor("stop", "string", some, optional=True),
        ),
        outputs=(
            TritonTensor("text_output", "string", one),
            TritonTensor("finish_reason", "string", one),
        ),
        kind="KIND_GPU" if on_gpu else "KIND_CPU",
        decoupled=True,
    )


def decoder_model(name: str, graph: Path, plan: bool) -> TritonModel:
    """The decoder step of docs/ONNX.md as it is. plan: an engine of the full TensorRT."""
    found = read_graph(graph)
    return TritonModel(
        name=name,
        backend="" if plan else "onnxruntime",
        platform="tensorrt_plan" if plan else "",
        inputs=[_tensor(port) for port in found.inputs],
        outputs=[_tensor(port) for port in found.outputs],
        kind="KIND_GPU" if plan else "KIND_CPU",
    )


def write_repository(
    model: Model, repository: Path, name: str, on_progress: Progress | None = None
) -> list[str]:
    """Fill an empty directory; returns the names of its models. Raises InputError for a name that
    cannot be a directory's."""
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]*", name):
        raise InputError(f"'{name}' is no name for a model of Triton; use letters, digits, . _ -")
    source = _files(model)
    version = _write_config(repository, text_model(name, model.kind == "tensorrt"))
    (version / SCRIPT).write_text(SCRIPT_TEXT, encoding="utf-8")
    for done, (path, inside) in enumerate(source.items()):
        if on_progress is not None:
            on_progress(done, len(source), inside)
        target = version / ARTIFACT / inside
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    names = [name]
    if model.kind in ("onnx", "tensorrt"):
        names.append(f"{name}_decoder")
        _write_decoder(model, version / ARTIFACT, repository, names[-1])
    return names


def _files(model: Model) -> dict[Path, str]:
    if model.directory is None or model.path.is_file():
        return {model.path: model.path.name}
    found = sorted(path for path in model.directory.rglob("*") if path.is_file())
    return {path: path.relative_to(model.directory).as_posix() for path in found}


def _write_decoder(model: Model, artifact: Path, repository: Path, name: str) -> None:
    plan = model.kind == "tensorrt" and read_facts(artifact).builder == "tensorrt"
    version = _write_config(repository, decoder_model(name, artifact / GRAPH_FILE, plan))
    files = {ENGINE_FILE: PLAN} if plan else {GRAPH_FILE: GRAPH_FILE, DATA_FILE: DATA_FILE}
    for source, target in files.items():
        shutil.copyfile(artifact / source, version / target)


def _write_config(repository: Path, model: TritonModel) -> Path:
    """The directory of the model's one version."""
    version = repository / model.name / VERSION
    version.mkdir(parents=True)
    path = repository / model.name / CONFIG
    path.write_text(model.to_pbtxt(), encoding="utf-8", newline="\n")
    return version


def _tensor(port: Port) -> TritonTensor:
    dims = tuple(size if isinstance(size, int) else ANY for size in port.shape)
    return TritonTensor(port.name, port.dtype, dims)
