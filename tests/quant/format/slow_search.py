"""The search for scales of ggml's blocks in NumPy: the oracle of the compiled one, to the bit.

Sums run over the elements of a group, or the groups of a block, one after the other. Arrays lie
with the elements of a group along the first axis, so that every step is one sweep over long rows.
"""

import numpy as np
import numpy.typing as npt

from quant.format.ggml_grid import BlockGrid, Floats, Levels, half, joined
from quant.format.ggml_search import EFFORTS, Known, floored
from quant.format.gguf_types import GgmlType
from tests.quant.format.slow_fit import Groups, fit_affine, fit_signed
from tests.quant.format.slow_nested import nest_affine, nest_signed

_CHUNK_ELEMENTS = 1 << 16


def slow_search(
    kind: GgmlType,
    weight: Floats,
    importance: Floats | None = None,
    known: Known | None = None,
) -> BlockGrid:
    """As `quant.format.ggml_search.search_blocks`."""
    rows, columns = weight.shape
    levels, relative = Levels(kind), floored(importance)
    h = np.ones(columns, np.float32) if relative is None else relative
    h = h.reshape(-1, levels.group).T
    step = max(1, _CHUNK_ELEMENTS // columns)
    with np.errstate(over="ignore", under="ignore", invalid="ignore", divide="ignore"):
        parts = []
        for start in range(0, max(rows, 1), step):
            part = slice(start, start + step)
            theirs = None if known is None else (known[0][part], known[1][part])
            parts.append(_search_rows(kind, levels, weight[part], h, theirs))
        return joined(parts)


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


def _search_rows(
    kind: GgmlType, levels: Levels, weight: Floats, h: Floats, known: Known | None
) -> BlockGrid:
    rows, effort = len(weight), EFFORTS[kind.name]
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
