"""Every tensor of the ONNX files, its form and its place, before any weight is read."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from compile.families import check_weights
from compile.model import Model
from compile.onnx_bytes import packed_bytes
from compile.onnx_contract import (
    DATA_FILE,
    INPUT_SCALE_SUFFIX,
    INPUTS,
    ORDER_SUFFIX,
    SCALE_SUFFIX,
    ZERO_POINT_SUFFIX,
)
from compile.onnx_proto import ExternalTensor, encode_graph
from compile.open_model import open_model
from compile.program import Op, Program, Rope
from compile.to_onnx.forms import choose_forms
from compile.to_onnx.lower import lower
from compile.to_onnx.rope import rope_tables
from compile.to_onnx.types import TYPE_NAMES, Form, TypeName
from quant.format.errors import InputError, UnsupportedModelError
from quant.format.scheme import FloatScheme

TOKENIZER = "tokenizer.json"
ALIGNMENT = 4096
"""A tensor begins on a page of memory, so that a reader can map it."""


@dataclass(frozen=True)
class OnnxRow:
    """One weight of the checkpoint in the ONNX files; `nbytes` counts scales and zero points."""

    tensor: str
    scheme: str
    form: Form
    shape: tuple[int, ...]
    parts: tuple[ExternalTensor, ...]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.parts)


@dataclass(frozen=True)
class OnnxPlan:
    """Everything about the files but the weights' bytes.

    tables: the rotary embeddings' cosines and sines, which no checkpoint stores. graph_bytes: the
    finished graph. data_bytes: exact size of the file beside it.
    """

    model: Model
    rows: tuple[OnnxRow, ...]
    tables: tuple[ExternalTensor, ...]
    graph_bytes: bytes
    notes: tuple[str, ...]

    @property
    def program(self) -> Program:
        return self.model.program

    @property
    def data_bytes(self) -> int:
        tensors = (*(part for row in self.rows for part in row.parts), *self.tables)
        return max(tensor.offset + tensor.nbytes for tensor in tensors)

    @property
    def file_bytes(self) -> int:
        """Graph and data."""
        return len(self.graph_bytes) + self.data_bytes

    @property
    def bits_per_weight(self) -> float:
        """Over all tensors of the checkpoint, vectors included."""
        weights = sum(map(math.prod, self.program.weights().values()))
        return 8 * sum(row.nbytes for row in self.rows) / weights


def plan_onnx(
    checkpoint_dir: Path, type_name: str, version: str, *, round_inputs: bool = False
) -> OnnxPlan:
    """Plan the ONNX files of a Hugging Face checkpoint, or of a GGUF file beside its tokenizer.

    Reads headers and small JSON files only, but for weights whose config says that their columns
    may be scattered.

    type_name: `auto` keeps every number as it is stored; `int4` and `int8` keep integers that fit
    and round what does not, with a note; `fp32` writes every weight's exact value as float32,
    `fp16` rounds matrices to float16; `fp8` is `auto`, and keeps FP8 too. version: of coldpress.
    round_inputs: whether the graph rounds the inputs that the checkpoint does, where it keeps the
    weights' integers; TensorRT knows no operation for it.

    Raises UnsupportedModelError for what the graph cannot hold, InputError for bad usage,
    MissingExtraError without the onnx package.
    """
    model = open_model(checkpoint_dir)
    return plan_model(model, type_name, version, round_inputs=round_inputs)


def plan_model(
    model: Model, type_name: str, version: str, *, round_inputs: bool = False
) -> OnnxPlan:
    """`plan_onnx` of a model that is open already."""
    known = next((name for name in TYPE_NAMES if name == type_name), None)
    if known is None:
        raise InputError(
            f"ONNX type '{type_name}' is not known; known types: {', '.join(TYPE_NAMES)}"
        )
    _check_source(model)
    check_weights(model.program, model.weights)
    _check_ops(model.program)
    forms = choose_forms(model, known, round_inputs)
    layout = _Layout()
    rows = tuple(_row(model, name, form, layout) for name, form in forms.items())
    tables = tuple(
        layout.place(name, "float32", (model.program.sizes.max_positions, spec.dimension // 2))
        for name, spec in rope_tables(model.program).items()
    )
    tensors = (*(part for row in rows for part in row.parts), *tables)
    graph = lower(model.program, forms, tensors)
    graph = replace(graph, metadata={**graph.metadata, **_inputs_metadata(forms)})
    notes = (*model.notes, *_input_notes(model, forms), *_rounding_notes(known, rows))
    return OnnxPlan(model, rows, tables, encode_graph(graph, version), notes)


def _check_source(model: Model) -> None:
    if model.kind == "onnx":
        raise InputError(f"{model.path}: is an ONNX artifact already; give its checkpoint")
    directory = model.directory
    if model.kind == "gguf" and (directory is None or not (directory / TOKENIZER).is_file()):
        raise InputError(
            f"{model.path}: keeps its tokenizer in its header, and an ONNX artifact has none; give "
            f"a directory that holds the .gguf file and a {TOKENIZER}"
        )


def _row(model: Model, name: str, form: Form, layout: "_Layout") -> OnnxRow:
    scheme, shape = str(model.weights.scheme(name)), tuple(model.weights.shape(name))
    parts = tuple(layout.place(*part) for part in stored_parts(name, form, shape))
    return OnnxRow(name, scheme, form, shape, parts)


def stored_parts(
    name: str, form: Form, shape: tuple[int, ...]
) -> list[tuple[str, str, tuple[int, ...]]]:
    """(name, dtype, shape) of what one weight is stored as; quantized ones lie as [in, out]."""
    if form.group is None:
        return [(name, form.dtype, shape)]
    rows, columns = shape
    scales = (columns // form.group, rows) if form.group else (rows,)
    parts: list[tuple[str, str, tuple[int, ...]]] = [
        (name, form.dtype, (columns, rows)),
        (f"{name}{SCALE_SUFFIX}", "float32", scales),
    ]
    if form.zero_points:
        parts.append((f"{name}{ZERO_POINT_SUFFIX}", form.dtype, scales))
    if form.ordered:
        parts.append((f"{name}{ORDER_SUFFIX}", "int64", (columns,)))
    if form.inputs is not None and not form.inputs.dynamic:
        parts.append((f"{name}{INPUT_SCALE_SUFFIX}", "float32", ()))
    return parts


class _Layout:
    """Hands out places in the data file, one after the other."""

    def __init__(self) -> None:
        self._end = 0

    def place(self, name: str, dtype: str, shape: tuple[int, ...]) -> ExternalTensor:
        offset = -(-self._end // ALIGNMENT) * ALIGNMENT
        nbytes = packed_bytes(dtype, shape)
        self._end = offset + nbytes
        return ExternalTensor(name, dtype, shape, DATA_FILE, offset, nbytes)


def _check_ops(program: Program) -> None:
    for op in program.ops:
        problem = _problem(op)
        if problem is not None:
            raise UnsupportedModelError(
                f"{program.family} models cannot be written as ONNX yet: {problem}"
            )


def _problem(op: Op) -> str | None:
    match op:
        case Rope() if op.rope.dimension % 2 or op.rope.dimension > op.head_dim:
            return f"{op.out} rotates {op.rope.dimension} of a head's {op.head_dim} elements"
        case _:
            return None


def _inputs_metadata(forms: Mapping[str, Form]) -> dict[str, str]:
    ways: dict[str, list[str]] = {}
    for name, form in forms.items():
        if form.inputs is not None:
            ways.setdefault(str(form.inputs), []).append(name)
    return {INPUTS: json.dumps(ways, sort_keys=True)} if ways else {}


def _input_notes(model: Model, forms: Mapping[str, Form]) -> tuple[str, ...]:
    """What the checkpoint rounds and the graph does not."""
    ways = Counter(
        str(op.scheme.activation)
        for op in model.program.projections()
        if not isinstance(op.scheme, FloatScheme) and op.scheme.activation is not None
        if forms[op.weight].inputs is None
    )
    return tuple(
        f"the checkpoint rounds the inputs of {count} linears ({way}); the ONNX graph does not, "
        "and multiplies by inputs as they are"
        for way, count in sorted(ways.items())
    )


def _rounding_notes(type_name: TypeName, rows: Sequence[OnnxRow]) -> tuple[str, ...]:
    """Of each number format that is rounded to integers here, how often and to what."""
    ways = Counter((row.scheme, row.form.dtype, row.form.group) for row in rows if row.form.rounded)
    return tuple(
        f"rounded anew from {scheme} to {dtype}, with a scale for each "
        f"{f'group of {group}' if group else 'row'}, because onnx:{type_name} was asked for: "
        f"{count} of the weights; --target onnx rounds nothing"
        for (scheme, dtype, group), count in ways.items()
    )
