"""A Hugging Face checkpoint as one GGUF file, a tensor at a time."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from compile.gguf_names import FACTOR, interleaved_order, rope_heads, take_rows
from compile.model import Model
from compile.open_model import open_model
from compile.to_gguf.again import RoundedAgain
from compile.to_gguf.plan import GgufPlan, GgufRow, plan_model
from quant.format.ggml_fp4 import factor_of
from quant.format.ggml_search import round_blocks
from quant.format.gguf_blocks import FLOATS, encode
from quant.format.gguf_rounding import round_to
from quant.format.gguf_writer import gguf_writer
from quant.format.tensor import QuantizedTensor, Weight

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class GgufBuild:
    """What was built: the finished file and its plan."""

    path: Path
    rows: tuple[GgufRow, ...]
    file_bytes: int
    bits_per_weight: float
    notes: tuple[str, ...]


def build_gguf(
    checkpoint_dir: Path,
    output_file: Path,
    type_name: str = "auto",
    on_progress: Progress | None = None,
) -> GgufBuild:
    """Write the GGUF file of a checkpoint; see `plan_gguf` for the types.

    Only one tensor is in memory at a time, and the same checkpoint gives the same bytes. Raises
    what `plan_gguf` raises before anything is written, and UnsupportedModelError naming the tensor
    whose numbers do not fit their type.
    """
    return build_model(open_model(checkpoint_dir), output_file, type_name, on_progress)


def build_model(
    model: Model, output_file: Path, type_name: str = "auto", on_progress: Progress | None = None
) -> GgufBuild:
    """`build_gguf` of a model that is open already."""
    plan, again = plan_model(model, type_name), RoundedAgain()
    with gguf_writer(output_file, plan.layout) as writer:
        for done, row in enumerate(plan.rows):
            if on_progress is not None:
                on_progress(done, len(plan.rows), row.tensor)
            writer.write(row.tensor, _tensor_bytes(plan, row, again))
    if on_progress is not None:
        on_progress(len(plan.rows), len(plan.rows), str(output_file))
    return GgufBuild(
        Path(output_file),
        plan.rows,
        plan.file_bytes,
        plan.bits_per_weight,
        (*plan.notes, *again.notes()),
    )


def _tensor_bytes(plan: GgufPlan, row: GgufRow, again: RoundedAgain) -> npt.NDArray[np.uint8]:
    if not row.sources:
        return plan.rope_factors[row.tensor].view(np.uint8)
    if row.tensor.endswith(FACTOR):
        return np.array([_factor(plan, name) for name in row.sources], "<f4").view(np.uint8)
    if len(row.sources) == 1:
        return _weight_bytes(plan, row, row.sources[0], again)
    stacked = np.empty((len(row.sources), row.nbytes // len(row.sources)), np.uint8)
    for part, name in zip(stacked, row.sources, strict=True):
        part[:] = _weight_bytes(plan, row, name, again).reshape(-1)
    return stacked


def _factor(plan: GgufPlan, name: str) -> np.float32:
    weight = plan.model.weights.load(name)
    assert isinstance(weight, QuantizedTensor), "floats have no factor"
    return factor_of(weight)


def _weight_bytes(
    plan: GgufPlan, row: GgufRow, name: str, again: RoundedAgain
) -> npt.NDArray[np.uint8]:
    weight = _in_gguf_order(plan, name, plan.model.weights.load(name))
    if isinstance(weight, QuantizedTensor) and row.type not in FLOATS:
        if plan.type_name != "auto":
            weight = again.blocks(name, row.type, weight)
        return encode(name, row.type, weight)
    floats = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
    if plan.mix is not None and row.type not in FLOATS:
        return encode(name, row.type, round_blocks(name, row.type, floats))
    offset = plan.program.norm_offsets().get(name, 0.0)
    if offset:
        floats = floats.astype(np.float32) + np.float32(offset)
    return round_to(name, row.type, floats)


def _in_gguf_order(plan: GgufPlan, name: str, weight: Weight) -> Weight:
    sizes = plan.model.program.sizes
    heads = rope_heads(name, sizes.heads, sizes.kv_heads)
    if heads is None or not plan.architecture.interleaved_rope:
        return weight
    return take_rows(weight, interleaved_order(weight.shape[0], heads))
