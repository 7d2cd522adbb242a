"""How files name the experts of a mixture: one matrix each, or all in one 3-D tensor."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from quant.format.safetensors_file import SafetensorsFile, TensorInfo


@dataclass(frozen=True)
class ExpertNames:
    """A family's names. block: the part of a decoder layer that routes, e.g. `mlp`; then those of
    an expert's matrices: `model.layers.0.{block}.experts.3.{gate}.weight`."""

    block: str
    gate: str
    up: str
    down: str


_COMMON = ExpertNames("mlp", "gate_proj", "up_proj", "down_proj")
EXPERT_NAMES: Mapping[str, ExpertNames] = {
    "mixtral": ExpertNames("block_sparse_moe", "w1", "w3", "w2"),
    "qwen2_moe": _COMMON,
    "qwen3_moe": _COMMON,
    "olmoe": _COMMON,
}
"""Families whose experts compute `down(act(gate(x)) * up(x))`, weighted by their router."""

_GATE_UP = ".mlp.experts.gate_up_proj"
_DOWN = ".mlp.experts.down_proj"
_ROUTER = ".mlp.gate.weight"


def split_stacked(
    files: Mapping[str, SafetensorsFile], config: Mapping[str, Any]
) -> Mapping[str, SafetensorsFile]:
    """The file of each tensor, with a matrix for each expert where transformers has stacked them.

    transformers may write `mlp.experts.gate_up_proj` [experts, 2 * inner, hidden] and
    `mlp.experts.down_proj` [experts, hidden, inner], the gate's rows before the up's. Each expert's
    rows lie together, so that its matrices are parts of the same bytes, and nothing is copied.
    """
    names = EXPERT_NAMES.get(str(config.get("model_type")))
    if names is None or not any(name.endswith(_GATE_UP) for name in files):
        return files
    views: dict[SafetensorsFile, SafetensorsFile] = {}
    for file in files.values():
        if file not in views:
            views[file] = copy.copy(file)
            views[file].tensors = dict(
                part for item in file.tensors.items() for part in _parts(*item, names)
            )
    return {name: view for view in views.values() for name in view.tensors}


def _parts(name: str, info: TensorInfo, names: ExpertNames) -> Iterator[tuple[str, TensorInfo]]:
    prefix, _, _ = name.rpartition(".mlp.")
    block = f"{prefix}.{names.block}"
    if name.endswith(_GATE_UP) and len(info.shape) == 3 and info.shape[1] % 2 == 0:
        yield from _matrices(f"{block}.experts", (names.gate, names.up), info)
    elif name.endswith(_DOWN) and len(info.shape) == 3:
        yield from _matrices(f"{block}.experts", (names.down,), info)
    elif name.endswith(_ROUTER):
        yield f"{block}.gate.weight", info
    else:
        yield name, info


def _matrices(
    prefix: str, leaves: tuple[str, ...], info: TensorInfo
) -> Iterator[tuple[str, TensorInfo]]:
    count, rows, columns = info.shape
    shape = (rows // len(leaves), columns)
    size = shape[0] * shape[1] * info.dtype.itemsize
    begin = info.begin
    for number in range(count):
        for leaf in leaves:
            yield (
                f"{prefix}.{number}.{leaf}.weight",
                TensorInfo(info.dtype, shape, begin, begin + size),
            )
            begin += size
