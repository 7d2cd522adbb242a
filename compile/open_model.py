"""Open whatever a user points at as a Model, reading headers only."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from compile.engine_file import ENGINE_FILE
from compile.families import build_program, check_weights
from compile.families.decoder import HEAD
from compile.from_gguf import open_gguf
from compile.model import Model
from compile.onnx_contract import GRAPH_FILE
from compile.program import Program
from compile.text_part import text_part
from quant.format.checkpoint import Checkpoint, open_checkpoint, read_json_object
from quant.format.errors import FileFormatError, InputError
from quant.format.scheme import FloatScheme, QuantizedScheme, Scheme
from quant.format.staging import is_staging
from quant.format.tensor import WeightSource

CONFIG = "config.json"


def open_model(path: Path) -> Model:
    """The model at `path`: a Hugging Face directory (quantized or not), a .gguf file, or a
    directory that holds one .gguf file, or an ONNX graph and its weights, with tokenizer files.

    Raises InputError, FileFormatError or UnsupportedModelError naming the path, and
    MissingExtraError for ONNX without its package.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or directory; download the model first")
    if is_staging(path.resolve()):
        raise InputError(f"{path}: was left by an interrupted run; delete it and run again")
    if path.is_dir():
        return _open_directory(path)
    if path.suffix == ".gguf":
        return _open_gguf(path, path, None)
    if path.name == GRAPH_FILE:
        return _open_onnx(path, path.parent)
    if path.name == ENGINE_FILE:
        return _open_directory(path.parent)
    raise InputError(f"{path}: is neither a .gguf file nor a directory with a {CONFIG}")


def gguf_payload(path: Path) -> Path | None:
    """The GGUF file that `path` stands for: itself, or the one of a directory without other
    weights; None where it is no GGUF file. Raises InputError for a directory that holds several."""
    if not path.is_dir():
        return path if path.suffix == ".gguf" and path.is_file() else None
    payloads = sorted(path.glob("*.gguf"))
    if not payloads or any(path.glob("*.safetensors")):
        return None
    if len(payloads) > 1:
        names = ", ".join(payload.name for payload in payloads)
        raise InputError(f"{path}: holds several GGUF files ({names}); name the one to open")
    return payloads[0]


def _open_directory(path: Path) -> Model:
    payload = gguf_payload(path)
    if payload is not None:
        return _open_gguf(path, payload, path)
    if (path / GRAPH_FILE).exists() and not any(path.glob("*.safetensors")):
        return _open_onnx(path, path)
    if (path / ENGINE_FILE).exists():
        raise InputError(
            f"{path}: holds {ENGINE_FILE} without the {GRAPH_FILE} and the weights that it was "
            "built from; copy them beside it"
        )
    if not (path / CONFIG).is_file():
        raise InputError(f"{path}: holds neither a {CONFIG} nor a .gguf file")
    return checkpoint_model(open_checkpoint(path))


def checkpoint_model(checkpoint: Checkpoint) -> Model:
    """The model of a checkpoint that is open already; raises what `open_model` does."""
    path, directory = checkpoint.path, checkpoint.directory
    config, weights, left_out = text_part(checkpoint.config, checkpoint)
    program = _program(path, config, weights)
    notes = (*checkpoint.notes, *left_out, *_head_note(config, program))
    notes += (*_kv_cache_note(checkpoint), *_length_note(config, program))
    return Model(path, "huggingface", program, weights, config, directory, None, notes)


def _open_gguf(path: Path, payload: Path, directory: Path | None) -> Model:
    config, weights, metadata, notes = open_gguf(payload)
    program = _program(payload, config, weights)
    told = (*notes, *_length_note(config, program))
    return Model(path, "gguf", program, weights, config, directory, metadata, told)


def _open_onnx(path: Path, directory: Path) -> Model:
    from compile.from_onnx import open_onnx

    config = read_json_object(directory / CONFIG)
    weights = open_onnx(directory / GRAPH_FILE)
    program = _program(path, config, weights)
    length = _length_note(config, program)
    if (directory / ENGINE_FILE).exists():
        return Model(path, "tensorrt", program, weights, config, directory, None, length)
    schemes = [op.scheme for op in program.projections()]
    quantized = [scheme for scheme in schemes if isinstance(scheme, QuantizedScheme)]
    notes = _accuracy_note(sum(scheme.activation is None for scheme in quantized))
    return Model(path, "onnx", program, weights, config, directory, None, (*length, *notes))


def _accuracy_note(quantized: int) -> tuple[str, ...]:
    if quantized == 0:
        return ()
    return (
        f"ONNX Runtime rounds the inputs of the {quantized} quantized linears to int8 when it "
        "serves; verify compares without that",
    )


def _program(path: Path, config: Mapping[str, Any], weights: WeightSource) -> Program:
    names = set(weights.names())

    def scheme_of(name: str) -> Scheme:
        # A missing tensor has no scheme; check_weights lists all of them in one sentence.
        return weights.scheme(name) if name in names else FloatScheme("float32")

    try:
        program = build_program(config, scheme_of, names.__contains__)
        check_weights(program, weights)
    except FileFormatError:
        raise
    except InputError as error:
        raise type(error)(f"{path}: {error}") from error
    return program


def _length_note(config: Mapping[str, Any], program: Program) -> tuple[str, ...]:
    reached, longest = program.sizes.max_positions, config["max_position_embeddings"]
    if reached >= longest:
        return ()
    return (
        f"contexts of up to {reached} tokens are served, not {longest}: beyond, the rotary "
        "embedding (longrope) has other factors, with which all keys were to be computed again",
    )


def _kv_cache_note(checkpoint: Checkpoint) -> tuple[str, ...]:
    if checkpoint.kv_cache is None:
        return ()
    return (
        f"the checkpoint says how to round the KV cache ({checkpoint.kv_cache.numbers}); the cuda "
        "backend does so, with the scales that it holds; other backends keep keys and values as "
        "--kv-cache-type says, and its scales are not used",
    )


def _head_note(config: Mapping[str, Any], program: Program) -> tuple[str, ...]:
    if program.tied_embeddings or not config.get("tie_word_embeddings"):
        return ()
    return (f"{CONFIG} ties the embeddings, but '{HEAD}' is stored as well and is used",)
