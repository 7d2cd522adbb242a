"""Which type every tensor gets, and the exact size of the file, before any data is read."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from compile.families import check_weights
from compile.gguf_names import (
    ARCHITECTURES,
    EMBEDDINGS,
    FACTOR,
    HEAD,
    ROUTER,
    Architecture,
    gguf_name,
    stacked_name,
)
from compile.model import Model
from compile.open_model import open_model
from compile.program import Program
from compile.to_gguf.limits import check_program
from compile.to_gguf.metadata import model_keys, rope_factors
from compile.to_gguf.types import AGAIN, MIX_NAMES, TYPE_NAMES, choose_type
from compile.to_gguf.vocabulary import vocabulary_keys
from quant.format.errors import InputError, UnsupportedModelError
from quant.format.ggml_mix import MixedType, facts_of, file_type, mixed_type
from quant.format.gguf_types import F32, NVFP4, TYPE_BY_NAME, GgmlType
from quant.format.gguf_writer import MAX_NAME_LENGTH, GgufLayout, TensorSlot
from quant.format.scheme import FloatScheme, QuantizedScheme, Scheme

FLOAT_FILE_TYPES = {"F32": 0, "F16": 1, "BF16": 32}
"""`general.file_type` of files of floats (llama.h, enum llama_ftype)."""


@dataclass(frozen=True)
class GgufRow:
    """One tensor of the file. `sources` are its Hugging Face names: one, those of all experts, or
    none where it is computed."""

    tensor: str
    sources: tuple[str, ...]
    scheme: str
    type: GgmlType
    shape: tuple[int, ...]
    reason: str

    @property
    def nbytes(self) -> int:
        return self.type.nbytes(self.shape)


@dataclass(frozen=True)
class GgufPlan:
    """Everything about the file but its tensor data. `file_bytes` is exact. mix: of ggml types, by
    which floats are rounded; None where each type was asked for by itself. type_name: what was.
    rope_factors: the tensors that are computed, by name."""

    rows: tuple[GgufRow, ...]
    notes: tuple[str, ...]
    layout: GgufLayout
    model: Model
    architecture: Architecture
    rope_factors: Mapping[str, npt.NDArray[np.float32]]
    mix: str | None = None
    type_name: str = "auto"

    @property
    def program(self) -> Program:
        return self.model.program

    @property
    def file_bytes(self) -> int:
        return self.layout.file_bytes

    @property
    def bits_per_weight(self) -> float:
        """Over all tensors, vectors included."""
        weights = sum(math.prod(row.shape) for row in self.rows)
        return 8 * sum(row.nbytes for row in self.rows) / weights


def plan_gguf(checkpoint_dir: Path, type_name: str = "auto") -> GgufPlan:
    """Plan the GGUF file of a Hugging Face checkpoint; reads headers and small JSON files only.

    type_name: `auto` keeps every number as it is stored (integers without loss, floats as they
    are); f32, f16, bf16, q8_0, q4_0, q4_1, q5_0 round a float checkpoint's matrices; the other
    names of types and mixes, such as q4_k_m, do so with scales searched for each block. Raises
    UnsupportedModelError for a model or type that GGUF cannot hold, InputError for bad usage.
    """
    return plan_model(open_model(checkpoint_dir), type_name)


def plan_model(model: Model, type_name: str = "auto") -> GgufPlan:
    """`plan_gguf` of a model that is open already."""
    if type_name not in TYPE_NAMES:
        known = ", ".join(TYPE_NAMES)
        raise InputError(f"GGUF type '{type_name}' is not known; known types: {known}")
    if model.kind != "huggingface" or model.directory is None:
        raise InputError(
            f"{model.path}: is built already ({model.kind}); give a Hugging Face directory"
        )
    program, source = model.program, model.weights
    check_weights(program, source)
    architecture = ARCHITECTURES.get(program.family)
    if architecture is None:
        raise UnsupportedModelError(f"GGUF files of {program.family} models are not supported")
    check_program(program, architecture)
    factors = rope_factors(program, architecture)
    mix = _mix_of(model, type_name)
    rows = _rows(model, architecture, type_name, mix, factors)
    vocabulary, notes = vocabulary_keys(model.directory, model.config, program.sizes.vocab_size)
    name = _name(model.config, model.directory)
    keys, model_notes = model_keys(program, architecture, model.config, name, _file_type(rows, mix))
    slots = [TensorSlot(row.tensor, row.type, row.shape) for row in rows]
    layout = GgufLayout(keys | vocabulary, slots)
    notes = [*model.notes, *model_notes, *notes, *_input_notes(program), *_type_notes(rows)]
    return GgufPlan(rows, tuple(notes), layout, model, architecture, factors, mix, type_name)


def _input_notes(program: Program) -> list[str]:
    rounded = program.rounded_inputs()
    if not rounded:
        return []
    return [
        f"the checkpoint rounds inputs ({rounded}); a GGUF file cannot say so, and is run without"
    ]


def _type_notes(rows: tuple[GgufRow, ...]) -> list[str]:
    """What a user may not expect of the types that a name stands for."""
    notes = []
    narrow = [row for row in rows if " are not whole blocks of " in row.reason]
    if narrow:
        counts = Counter(row.reason.rpartition(": ")[2] for row in narrow)
        kinds = ", ".join(f"{kind} ({count})" for kind, count in sorted(counts.items()))
        larger = sum(row.nbytes for row in rows) / sum(map(_bytes_if_filled, rows)) - 1
        notes.append(
            f"{len(narrow)} matrices have rows that blocks do not fill: {kinds}; the file is "
            f"{larger:.0%} larger by that"
        )
    again = sum(row.reason.startswith(AGAIN) for row in rows)
    if again:
        notes.append(
            f"{again} quantized matrices are rounded again, as asked; type auto would keep them"
        )
    return notes


def _bytes_if_filled(row: GgufRow) -> float:
    """What a row would take in the type that its reason says it was to have."""
    _, short, wanted = row.reason.rpartition(" instead of ")
    kind = TYPE_BY_NAME.get(wanted.upper(), row.type) if short else row.type
    return math.prod(row.shape) * kind.bits_per_weight / 8


def majority_type(rows: tuple[GgufRow, ...]) -> GgmlType:
    """The type of most matrices; what `general.file_type` means."""
    matrices = [row for row in rows if len(row.shape) > 1 and ROUTER not in row.tensor]
    linears = [row for row in matrices if row.tensor not in (EMBEDDINGS, HEAD)]
    counts = Counter(row.type for row in linears or matrices)
    return max(counts, key=lambda kind: (counts[kind], -kind.id))


def _file_type(rows: tuple[GgufRow, ...], mix: str | None) -> int:
    majority = majority_type(rows).name
    return (
        FLOAT_FILE_TYPES[majority] if majority in FLOAT_FILE_TYPES else file_type(mix or majority)
    )


def _mix_of(model: Model, type_name: str) -> str | None:
    """The mix that is asked for, or else the one that the checkpoint was quantized to."""
    if type_name in MIX_NAMES:
        return MIX_NAMES[type_name]
    config = model.config.get("quantization_config") or {}
    found = config.get("mix") if config.get("quant_method") == "ggml" else None
    return None if found is None or type_name != "auto" else str(found)


def _mixed_type(
    model: Model, mix: str | None, name: str, shape: tuple[int, ...]
) -> MixedType | None:
    """What the mix gives a matrix; as with llama.cpp F16 where no block fills its rows."""
    if mix is None or len(shape) == 1:
        return None
    facts = replace(facts_of(model.config), tied=model.program.tied_embeddings)
    return mixed_type(mix, name.removesuffix(".weight"), shape[1], facts)


def _rows(
    model: Model,
    architecture: Architecture,
    type_name: str,
    mix: str | None,
    factors: Mapping[str, npt.NDArray[np.float32]],
) -> tuple[GgufRow, ...]:
    weights, source = model.program.weights(), model.weights
    quantized = any(isinstance(source.scheme(name), QuantizedScheme) for name in weights)
    rows = []
    for tensor, names in _sources(weights, architecture).items():
        name, scheme = names[0], _one_scheme(model, names)
        shape = weights[name]
        mixed = _mixed_type(model, mix, name, shape)
        kind, reason = choose_type(tensor, name, scheme, shape, type_name, quantized, mixed)
        if ROUTER in tensor:
            kind, reason = F32, "routers are F32 in every GGUF file"
        stacked = (len(names), *shape) if stacked_name(name, architecture) else shape
        rows.append(GgufRow(tensor, names, str(scheme), kind, stacked, reason))
        if kind == NVFP4:
            rows.append(_factor_row(rows[-1]))
    for tensor, values in factors.items():
        computed = (str(FloatScheme("float32")), F32, values.shape, "rotary scaling")
        rows.append(GgufRow(tensor, (), *computed))
    return tuple(rows)


def _factor_row(row: GgufRow) -> GgufRow:
    """The tensor that an NVFP4 one is multiplied by, a number for each of its matrices."""
    name = row.tensor.removesuffix(".weight") + FACTOR
    scheme, shape = str(FloatScheme("float32")), (len(row.sources),)
    return GgufRow(name, row.sources, scheme, F32, shape, f"what {row.tensor} is multiplied by")


def _sources(weights: Iterable[str], architecture: Architecture) -> dict[str, tuple[str, ...]]:
    """What goes into each tensor, experts in the order of their numbers."""
    found: dict[str, tuple[str, ...]] = {}
    for name in weights:
        stacked = stacked_name(name, architecture)
        tensor = _checked_name(name, architecture) if stacked is None else stacked[0]
        assert stacked is None or stacked[1] == len(found.get(tensor, ())), "experts in order"
        found[tensor] = (*found.get(tensor, ()), name)
    return found


def _one_scheme(model: Model, names: tuple[str, ...]) -> Scheme:
    schemes = {model.weights.scheme(name): name for name in names}
    if len(schemes) > 1:
        (one, first), (other, second), *_ = schemes.items()
        raise UnsupportedModelError(
            f"a GGUF file holds the experts of a layer in one type, but tensor '{first}' is stored "
            f"as {one} and '{second}' as {other}; quantize them alike"
        )
    return next(iter(schemes))


def _checked_name(name: str, architecture: Architecture) -> str:
    tensor = gguf_name(name, architecture)
    if tensor is None or len(tensor) > MAX_NAME_LENGTH:
        raise UnsupportedModelError(f"tensor '{name}' has no place in a GGUF file")
    if tensor == HEAD and not architecture.own_head:
        raise UnsupportedModelError(
            f"tensor '{name}' cannot be written: llama.cpp multiplies by the token table in "
            f"{architecture.name} models"
        )
    if tensor.endswith(".bias"):
        allowed = architecture.mlp_bias if ".mlp." in name else architecture.attention_bias
        if not allowed:
            problem = f"llama.cpp has no such bias in {architecture.name} models"
            raise UnsupportedModelError(f"tensor '{name}' cannot be written: {problem}")
    return tensor


def _name(config: Mapping[str, Any], directory: Path) -> str:
    given = str(config.get("_name_or_path") or "").rstrip("/").rpartition("/")[2]
    return given or directory.resolve().name
