"""A checkpoint as an ONNX decoder step: the graph, and its weights beside it."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from compile.input_rounding import input_rounding
from compile.model import Model
from compile.onnx_bytes import pack_int4
from compile.onnx_contract import DATA_FILE, GRAPH_FILE
from compile.onnx_proto import ExternalTensor
from compile.open_model import CONFIG, open_model
from compile.to_onnx.plan import OnnxPlan, OnnxRow, plan_model
from compile.to_onnx.requantize import requantize
from compile.to_onnx.rope import rope_table, rope_tables
from quant.format.errors import UnsupportedModelError
from quant.format.staging import require_free_bytes, staged_file, write_file_atomically
from quant.format.tensor import QuantizedTensor, Weight

Progress = Callable[[int, int, str], None]
Parts = list[npt.NDArray[Any]]


@dataclass(frozen=True)
class OnnxBuild:
    """What was built: the directory of the finished files, and the plan's rows."""

    directory: Path
    rows: tuple[OnnxRow, ...]
    file_bytes: int
    bits_per_weight: float
    notes: tuple[str, ...]


def build_onnx(
    checkpoint_dir: Path,
    output_dir: Path,
    type_name: str = "auto",
    *,
    version: str,
    round_inputs: bool = False,
    on_progress: Progress | None = None,
) -> OnnxBuild:
    """Write `model.onnx`, `model.onnx.data` and `config.json`; see `plan_onnx` for the types.

    Only one tensor is in memory at a time, and the same checkpoint gives the same bytes. Raises
    what `plan_onnx` raises before anything is written, and UnsupportedModelError naming the tensor
    whose numbers do not fit its form.
    """
    return build_model(
        open_model(checkpoint_dir),
        output_dir,
        type_name,
        version=version,
        round_inputs=round_inputs,
        on_progress=on_progress,
    )


def build_model(
    model: Model,
    output_dir: Path,
    type_name: str = "auto",
    *,
    version: str,
    round_inputs: bool = False,
    on_progress: Progress | None = None,
) -> OnnxBuild:
    """`build_onnx` of a model that is open already."""
    plan = plan_model(model, type_name, version, round_inputs=round_inputs)
    data = Path(output_dir) / DATA_FILE
    require_free_bytes(data, plan.file_bytes)
    with staged_file(data) as aside, aside.open("xb") as file:
        for done, row in enumerate(plan.rows):
            if on_progress is not None:
                on_progress(done, len(plan.rows), row.tensor)
            _write(file, row.parts, encode(row, model.weights.load(row.tensor)))
        _write(file, plan.tables, _tables(plan))
    # The config comes last: a directory without it is no model.
    write_file_atomically(Path(output_dir) / GRAPH_FILE, plan.graph_bytes)
    write_file_atomically(Path(output_dir) / CONFIG, _config(model))
    if on_progress is not None:
        on_progress(len(plan.rows), len(plan.rows), str(output_dir))
    return OnnxBuild(Path(output_dir), plan.rows, plan.file_bytes, plan.bits_per_weight, plan.notes)


def encode(row: OnnxRow, weight: Weight) -> Parts:
    """The arrays of a row's parts, in their order. Raises UnsupportedModelError."""
    if row.form.group is None or row.form.rounded:
        floats = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
        if not row.form.rounded:
            return [_floats(row, floats)]
        weight = requantize(row.tensor, floats, row.form)
    assert isinstance(weight, QuantizedTensor), "its form came from its scheme"
    _check(row, weight)
    order = np.argsort(weight.column_groups(), kind="stable")
    codes = weight.codes[:, order] if row.form.ordered else weight.codes
    parts = [_integers(row, codes), _transposed(row, weight.effective_scale())]
    if weight.zero_point is not None:
        parts.append(_integers(row, weight.zero_point))
    if row.form.ordered:
        parts.append(order.astype(np.int64))
    if row.form.inputs is not None and not row.form.inputs.dynamic:
        rounding = input_rounding(row.tensor, weight)
        assert rounding is not None and rounding.fixed is not None
        parts.append(np.array(rounding.fixed, np.float32))
    return parts


def _floats(row: OnnxRow, floats: npt.NDArray[Any]) -> npt.NDArray[Any]:
    if row.form.dtype == floats.dtype.name:
        return floats
    with np.errstate(over="ignore"):
        stored = floats.astype(row.form.dtype)
    if (np.isinf(stored) & np.isfinite(floats)).any():
        raise UnsupportedModelError(
            f"tensor {row.tensor} has numbers that {row.form.dtype} does not hold; use --target "
            "onnx:fp32"
        )
    return stored


def _check(row: OnnxRow, weight: QuantizedTensor) -> None:
    problem = None
    if weight.group_index is not None and not row.form.ordered:
        problem = "has groups of scattered columns, of which its config does not tell (desc_act)"
    elif weight.minimum is not None:
        problem = "has a minimum in each group"
    elif row.form.zero_points != (weight.zero_point is not None):
        problem = "has zero points that its scheme does not tell of, or lacks them"
    if problem is not None:
        raise UnsupportedModelError(
            f"tensor {row.tensor} {problem}, which coldpress does not write as ONNX integers; use "
            "--target onnx:fp32, which keeps its exact values as floats"
        )


def _integers(row: OnnxRow, codes: npt.NDArray[np.int8]) -> npt.NDArray[Any]:
    turned = _transposed(row, codes)
    return pack_int4(turned) if row.form.dtype == "int4" else turned


def _transposed(row: OnnxRow, numbers: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """[out, in or groups] as [in or groups, out]; numbers of whole rows as [out]."""
    if row.form.group == 0 and numbers.shape[1] == 1:
        return np.broadcast_to(numbers[:, 0], (row.shape[0],))
    return np.ascontiguousarray(numbers.T)


def _tables(plan: OnnxPlan) -> Iterator[npt.NDArray[np.float32]]:
    positions = plan.program.sizes.max_positions
    for name, spec in rope_tables(plan.program).items():
        yield rope_table(name, spec, positions)


def _write(
    file: BinaryIO,
    parts: tuple[ExternalTensor, ...],
    arrays: "Parts | Iterator[npt.NDArray[np.float32]]",
) -> None:
    for part, array in zip(parts, arrays, strict=True):
        assert array.nbytes == part.nbytes, f"{part.name} has {array.nbytes} bytes"
        file.write(b"\0" * (part.offset - file.tell()))
        file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def _config(model: Model) -> bytes:
    """The source's config without how its own files store the weights."""
    config = {key: value for key, value in model.config.items() if key != "quantization_config"}
    return (json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n").encode()
