"""Scales of ggml's blocks chosen by weighted error, and weights rounded with them.

The plan is that of ggml-quants.c (make_qx_quants, make_qkx3_quants, make_qp_quants): fit each group
alone, then find factors that a block can store, and choose all codes by the scales as decoded.
Beyond it, ranges are clipped at both ends, both signs are tried, and factors, nested scales and
codes are improved in turn, each by the weighted error that results with real codes.

The loops are compiled (`quant/format/native`); tests hold them to a NumPy implementation, bit for
bit.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import numpy.typing as npt

from quant.format.codebooks import codebook_values
from quant.format.errors import UnsupportedModelError
from quant.format.ggml_grid import BlockGrid, Floats, Levels
from quant.format.gguf_types import GgmlType
from quant.format.native import _blocks
from quant.format.tensor import FloatArray, GgmlBlocks, QuantizedTensor

CHUNK_ELEMENTS = 1 << 18
"""Rows are rounded in chunks of so many elements, on any number of threads."""
NUDGES = (1.0, 0.97, 1.03, 0.985, 1.015, 0.993, 1.007)
"""What a fitted scale is moved by in search of better codes around it."""
NEST_ROUNDS = 2
SHARES = (1.0, 0.985, 0.97, 0.95, 0.92, 0.89, 0.86, 0.82, 0.78, 0.73, 0.67, 0.6)
"""Of the largest nested scale: what the group that wants most is tried at."""
_LEAST_IMPORTANCE = 1e-6
"""Of the mean: columns that no token reached are still rounded as well as nothing else is lost."""


@dataclass(frozen=True)
class Effort:
    """How a type is searched. reaches: levels that the largest magnitude of a group is tried at,
    negative ones for negative scales. margins: shares of the range to leave out at either end.
    rounds: of choosing codes and scale in turn."""

    reaches: Sequence[float] = ()
    margins: Sequence[tuple[float, float]] = ()
    rounds: int = 1


def _reaches(levels: float, least: float, most: float, count: int) -> tuple[float, ...]:
    """`count` reaches from `least` to `most` times `levels`, of either sign."""
    sizes = [levels * least * (most / least) ** (i / (count - 1)) for i in range(count)]
    return tuple(sign * size for size in sizes for sign in (-1.0, 1.0))


def _margins(steps: Sequence[float]) -> tuple[tuple[float, float], ...]:
    return tuple((below, above) for below in steps for above in steps)


_MANY_LEVELS = Effort(margins=_margins((-0.15, -0.05, 0.0, 0.03, 0.08)))
_CODEBOOK = Effort(_reaches(120, 0.7, 1.7, 13))
EFFORTS = {
    "Q4_0": Effort(_reaches(8, 0.75, 1.8, 14)),
    "Q5_0": Effort(_reaches(16, 0.68, 2.0, 20)),
    "Q8_0": Effort((127.0, 128.0, -128.0), rounds=0),
    "Q3_K": Effort(_reaches(4, 0.75, 1.7, 12)),
    "Q6_K": Effort(_reaches(32, 0.8, 1.3, 9)),
    "IQ4_NL": _CODEBOOK,
    "IQ4_XS": _CODEBOOK,
    "Q4_1": _MANY_LEVELS,
    "Q5_1": _MANY_LEVELS,
    "Q2_K": Effort(margins=_margins((-0.05, 0.04, 0.12, 0.2, 0.3))),
    "Q4_K": _MANY_LEVELS,
    "Q5_K": _MANY_LEVELS,
}


Known = tuple[Floats, Floats]
"""Scales (not 0; above 0 for types with a minimum) and minimums, float32 [out, groups], with which
a weight was rounded before; minimums are not looked at for types without one."""


def search_blocks(
    kind: GgmlType,
    weight: Floats,
    importance: Floats | None = None,
    known: Known | None = None,
    isa: str = "auto",
) -> BlockGrid:
    """The grid of `kind` on which rounding to nearest loses little of sum(importance * error**2).

    weight: float32 [out, in], whole blocks; importance: float32 [in], not negative, None: all
    columns alike. Rows do not influence each other. isa: see `quant.format.native`.
    """
    return _searched(kind, weight, floored(importance), known, None, isa)


def round_blocks(
    name: str,
    kind: GgmlType,
    weight: FloatArray,
    importance: Floats | None = None,
    known: Known | None = None,
    threads: int | None = None,
) -> QuantizedTensor:
    """A float weight [out, in] rounded to nearest on a searched grid of `kind`.

    threads: how many work, None: as many as this process may use; all give the same bytes. Raises
    UnsupportedModelError naming the tensor where a number is not finite or too large.
    """
    rows, columns = weight.shape
    step = max(1, CHUNK_ELEMENTS // max(columns, 1))
    parts = [slice(start, start + step) for start in range(0, max(rows, 1), step)]
    job = partial(_rounded, name, kind, weight, floored(importance), known)
    if len(parts) == 1:
        return job(parts[0])
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        return _joined(list(pool.map(job, parts)))


def floored(importance: Floats | None) -> Floats | None:
    """`importance` relative to its mean and above 0; None where all columns are alike."""
    if importance is None:
        return None
    mean = float(importance.mean(dtype=np.float64))
    if not mean > 0:
        return None
    relative: Floats = np.maximum(importance / np.float32(mean), np.float32(_LEAST_IMPORTANCE))
    return relative


def _rounded(
    name: str,
    kind: GgmlType,
    weight: FloatArray,
    importance: Floats | None,
    known: Known | None,
    part: slice,
) -> QuantizedTensor:
    wide = np.ascontiguousarray(weight[part], dtype=np.float32)
    if not np.isfinite(wide).all() or (wide.size and np.abs(wide).max() > np.finfo(np.float16).max):
        raise UnsupportedModelError(
            f"tensor '{name}' holds numbers that are not finite or too large for {kind}'s scales"
        )
    theirs = None if known is None else (known[0][part], known[1][part])
    codes = np.empty(wide.shape, np.int8)
    grid = _searched(kind, wide, importance, theirs, codes, "auto")
    return grid.tensor(codes)


def _joined(parts: list[QuantizedTensor]) -> QuantizedTensor:
    """The weights of consecutive rows as one."""
    if len(parts) == 1:
        return parts[0]
    first, blocks, minimum = parts[0], None, None
    if first.blocks is not None:
        data = np.concatenate([part.blocks.data for part in parts if part.blocks is not None])
        blocks = GgmlBlocks(first.blocks.type_name, data)
    if first.minimum is not None:
        minimum = np.concatenate([part.minimum for part in parts if part.minimum is not None])
    codes = np.concatenate([part.codes for part in parts])
    scale = np.concatenate([part.scale for part in parts])
    return QuantizedTensor(first.scheme, codes, scale, minimum=minimum, blocks=blocks)


def _searched(
    kind: GgmlType,
    weight: Floats,
    importance: Floats | None,
    known: Known | None,
    codes: npt.NDArray[np.int8] | None,
    isa: str,
) -> BlockGrid:
    rows, columns = weight.shape
    assert columns % kind.block == 0, f"rows of {columns} are not whole blocks of {kind}"
    levels, blocks = Levels(kind), columns // kind.block
    groups = columns // levels.group
    nested = levels.nested is not None
    d = np.empty((rows, blocks), np.float32)
    m = np.empty((rows, blocks), np.float32) if levels.has_minimum else None
    sub = np.empty((rows, groups), np.float32) if nested else None
    least = np.empty((rows, groups), np.float32) if nested and levels.has_minimum else None
    scale, minimum = (None, None) if known is None else map(np.ascontiguousarray, known)
    whole = np.ascontiguousarray(weight)
    _blocks.search(
        _native_type(kind), whole, importance, scale, minimum, d, m, sub, least, codes, isa
    )
    return BlockGrid(kind, d, m, sub, least)


@cache
def _native_type(kind: GgmlType) -> _blocks.Type:
    levels, effort = Levels(kind), EFFORTS[kind.name]
    tries = [(reach, 0.0) for reach in effort.reaches]
    if levels.has_minimum:
        top = levels.highest
        tries = [((1 - below - above) / top, below) for below, above in effort.margins]
    nested = levels.nested
    return _blocks.Type(
        group=levels.group,
        per_block=kind.block // levels.group,
        lowest=levels.lowest,
        highest=levels.highest,
        minimum=levels.has_minimum,
        levels=[float(value) for value in codebook_values("iq4_nl")] if levels.codebook else [],
        nested=[] if nested is None else [nested.lowest, nested.highest],
        tries=[number for pair in tries for number in pair],
        rounds=effort.rounds,
        nudges=NUDGES,
        ends=nested_ends(levels),
        nest_rounds=NEST_ROUNDS,
    )


def nested_ends(levels: Levels) -> list[float]:
    """What the nested scale of the group that wants most is tried at."""
    if levels.nested is None:
        return []
    lowest = [] if levels.has_minimum else [levels.nested.lowest * share for share in SHARES]
    return [*lowest, *(levels.nested.highest * share for share in SHARES)]
