"""Scales of ggml's blocks chosen by weighted error, and weights rounded with them.

The plan is that of ggml-quants.c (make_qx_quants, make_qkx3_quants, make_qp_quants): fit each group
alone, then find factors that a block can store, and choose all codes by the scales as decoded.
Beyond it, ranges are clipped at both ends, both signs are tried, and factors, nested scales and
codes are improved in turn, each by the weighted error that results with real codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from quant.format.errors import UnsupportedModelError
from quant.format.ggml_fit import Groups, fit_affine, fit_signed
from quant.format.ggml_grid import BlockGrid, Floats, Levels, half, joined
from quant.format.ggml_nested import nest_affine, nest_signed
from quant.format.gguf_types import GgmlType
from quant.format.tensor import FloatArray, QuantizedTensor

_CHUNK_ELEMENTS = 1 << 16
"""Rows are searched in chunks whose temporaries stay in a processor's cache."""
_LEAST_IMPORTANCE = 1e-6
"""Of the mean: columns that no token reached are still rounded as well as nothing else is lost."""


@dataclass(frozen=True)
class _Effort:
    """How a type is searched. reaches, margins: see `fit_signed` and `fit_affine`; rounds: of
    choosing codes and scale in turn."""

    reaches: Sequence[float] = ()
    margins: Sequence[tuple[float, float]] = ()
    rounds: int = 1


def _reaches(levels: float, least: float, most: float, count: int) -> tuple[float, ...]:
    """`count` reaches from `least` to `most` times `levels`, of either sign."""
    sizes = [levels * least * (most / least) ** (i / (count - 1)) for i in range(count)]
    return tuple(sign * size for size in sizes for sign in (-1.0, 1.0))


def _margins(steps: Sequence[float]) -> tuple[tuple[float, float], ...]:
    return tuple((below, above) for below in steps for above in steps)


_MANY_LEVELS = _Effort(margins=_margins((-0.15, -0.05, 0.0, 0.03, 0.08)))
_CODEBOOK = _Effort(_reaches(120, 0.7, 1.7, 13))
_EFFORTS = {
    "Q4_0": _Effort(_reaches(8, 0.75, 1.8, 14)),
    "Q5_0": _Effort(_reaches(16, 0.68, 2.0, 20)),
    "Q8_0": _Effort((127.0, 128.0, -128.0), rounds=0),
    "Q3_K": _Effort(_reaches(4, 0.75, 1.7, 12)),
    "Q6_K": _Effort(_reaches(32, 0.8, 1.3, 9)),
    "IQ4_NL": _CODEBOOK,
    "IQ4_XS": _CODEBOOK,
    "Q4_1": _MANY_LEVELS,
    "Q5_1": _MANY_LEVELS,
    "Q2_K": _Effort(margins=_margins((-0.05, 0.04, 0.12, 0.2, 0.3))),
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
) -> BlockGrid:
    """The grid of `kind` on which rounding to nearest loses little of sum(importance * error**2).

    weight: float32 [out, in], whole blocks; importance: float32 [in], not negative, None: all
    columns alike. Rows do not influence each other.
    """
    rows, columns = weight.shape
    assert columns % kind.block == 0, f"rows of {columns} are not whole blocks of {kind}"
    levels = Levels(kind)
    h = _floored(importance, columns).reshape(-1, levels.group).T
    step = max(1, _CHUNK_ELEMENTS // columns)
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        parts = []
        for start in range(0, max(rows, 1), step):
            part = slice(start, start + step)
            theirs = None if known is None else (known[0][part], known[1][part])
            parts.append(_search_rows(kind, levels, weight[part], h, theirs))
        return joined(parts)


def round_blocks(
    name: str,
    kind: GgmlType,
    weight: FloatArray,
    importance: Floats | None = None,
    known: Known | None = None,
) -> QuantizedTensor:
    """A float weight [out, in] rounded to nearest on a searched grid of `kind`.

    Raises UnsupportedModelError naming the tensor where a number is not finite or too large.
    """
    wide = weight.astype(np.float32)
    if not np.isfinite(wide).all() or (wide.size and np.abs(wide).max() > np.finfo(np.float16).max):
        raise UnsupportedModelError(
            f"tensor '{name}' holds numbers that are not finite or too large for {kind}'s scales"
        )
    grid = search_blocks(kind, wide, importance, known)
    return grid.tensor(nearest_codes(grid, wide))


def nearest_codes(grid: BlockGrid, weight: Floats) -> npt.NDArray[np.int8]:
    """int8 [out, in]: the codes nearest to `weight`, chosen with the scales as decoded."""
    levels, (rows, columns) = Levels(grid.kind), weight.shape
    scale, minimum = grid.scale()[..., None], grid.minimum()
    codes = np.empty((rows, columns), np.int8)
    step = max(1, _CHUNK_ELEMENTS // columns)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        x = weight[part].reshape(-1, scale.shape[1], levels.group)
        if minimum is not None:
            x = x - minimum[part, :, None]
        codes[part] = levels.codes(x / scale[part]).reshape(-1, columns)
    return codes


def _floored(importance: Floats | None, columns: int) -> Floats:
    if importance is None:
        return np.ones(columns, np.float32)
    mean = float(importance.mean(dtype=np.float64))
    if not mean > 0:
        return np.ones(columns, np.float32)
    floored: Floats = np.maximum(importance / np.float32(mean), np.float32(_LEAST_IMPORTANCE))
    return floored


def _search_rows(
    kind: GgmlType, levels: Levels, weight: Floats, h: Floats, known: Known | None
) -> BlockGrid:
    rows, effort = len(weight), _EFFORTS[kind.name]
    x = np.ascontiguousarray(weight.reshape(-1, levels.group).T, dtype=np.float32)
    groups = Groups(x, np.ascontiguousarray(np.tile(h, (1, rows))), levels)
    if levels.has_minimum:
        below_zero = levels.nested is not None
        pair = None if known is None else (known[0].reshape(-1), known[1].reshape(-1))
        scale, minimum = fit_affine(groups, effort.margins, effort.rounds, below_zero, pair)
        if below_zero:
            return nest_affine(kind, groups, scale, minimum, rows)
        return _plain_affine(kind, groups, scale, minimum, rows)
    alone = None if known is None else known[0].reshape(-1)
    scale = fit_signed(groups, effort.reaches, effort.rounds, alone)
    if levels.nested is not None:
        return nest_signed(kind, groups, scale, rows)
    return _plain_signed(kind, groups, scale, rows)


def _plain_signed(kind: GgmlType, groups: Groups, scale: Floats, rows: int) -> BlockGrid:
    """The fitted scale, or where rounding it to float16 spoils it, the one that clips nothing."""
    x, levels = groups.x, groups.levels
    at = np.abs(x).argmax(axis=0)
    plain = half(np.take_along_axis(x, at[None], axis=0)[0] / np.float32(levels.lowest))
    best = half(scale)
    worse = groups.error(groups.sums(best), best) > groups.error(groups.sums(plain), plain)
    return BlockGrid(kind, np.where(worse, plain, best).reshape(rows, -1))


def _plain_affine(
    kind: GgmlType, groups: Groups, scale: Floats, minimum: Floats, rows: int
) -> BlockGrid:
    """The minimum follows the scale as it is rounded."""
    best = half(scale)
    sums = groups.sums(best, minimum)
    least = half((groups.sum_x - best * sums.c) / groups.w)
    return BlockGrid(kind, best.reshape(rows, -1), least.reshape(rows, -1))
