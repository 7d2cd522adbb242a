"""The grid of ggml's blocks: which levels a type has, and the scales that its blocks can hold."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from quant.format.codebooks import codebook_values
from quant.format.ggml_kblocks import LAYOUTS as NESTED
from quant.format.ggml_kblocks import Codes, NestedScales, quantized_tensor
from quant.format.gguf_blocks import LAYOUTS as PLAIN
from quant.format.gguf_blocks import SCHEMES
from quant.format.gguf_types import GgmlType
from quant.format.scheme import CodebookScheme
from quant.format.tensor import QuantizedTensor

Floats = npt.NDArray[np.float32]


class Levels:
    """The numbers that codes of a type stand for before they are scaled."""

    def __init__(self, kind: GgmlType) -> None:
        scheme = SCHEMES[kind]
        self.codebook = isinstance(scheme, CodebookScheme)
        self.group = scheme.group_size(kind.block)
        self.nested = NESTED.get(kind)
        if isinstance(scheme, CodebookScheme):
            self._table = codebook_values(scheme.codebook)
            self.lowest, self.highest = float(self._table.min()), float(self._table.max())
            # The table holds whole numbers, so that the middles between them are halves, and one
            # entry for each half decides: those of an entry all have the same nearest level.
            middles = np.arange(-255, 257, dtype=np.float32) / 2 + 0.25
            self._nearest = np.abs(middles[:, None] - self._table).argmin(axis=1).astype(np.int8)
        else:
            offset = PLAIN[kind].offset if kind in PLAIN else NESTED[kind].offset
            signed_8 = scheme.num_bits == 8
            self.lowest = -128.0 if signed_8 else float(-offset)
            self.highest = self.lowest + float((1 << scheme.num_bits) - 1)
        self.has_minimum = not self.codebook and not scheme.symmetric

    def snap(self, steps: Floats) -> Floats:
        """The level nearest to each step; integers in place, halves to even."""
        if self.codebook:
            nearest: Floats = self._table[self._nearest[self._cells(steps)]]
            return nearest
        np.rint(steps, out=steps)
        np.maximum(steps, np.float32(self.lowest), out=steps)
        return np.minimum(steps, np.float32(self.highest), out=steps)

    def codes(self, steps: Floats) -> Codes:
        """int8: the stored code of the level nearest to each step."""
        if self.codebook:
            codes: Codes = self._nearest[self._cells(steps)]
            return codes
        return self.snap(steps).astype(np.int8)

    def _cells(self, steps: Floats) -> npt.NDArray[np.intp]:
        cells = np.floor(steps * np.float32(2)) + np.float32(255)
        cells = np.clip(np.nan_to_num(cells), 0, 511)
        return np.asarray(cells, np.intp)


@dataclass(frozen=True)
class BlockGrid:
    """Scales that blocks of `kind` can hold, float32 [out, ...], each number as it is stored.

    d: [out, blocks], float16's numbers, never 0. m: the like, for types with a minimum: the minimum
    itself in blocks of 32, its multiplier where scales are nested. sub_scales (never 0),
    sub_minimums: whole numbers [out, groups], where scales are nested.
    """

    kind: GgmlType
    d: Floats
    m: Floats | None = None
    sub_scales: Floats | None = None
    sub_minimums: Floats | None = None

    def scale(self) -> Floats:
        """float32 [out, groups], exact."""
        return self.d if self.sub_scales is None else _per_group(self.d, self.sub_scales)

    def minimum(self) -> Floats | None:
        """float32 [out, groups], exact: what is added to level * scale."""
        if self.m is None or self.sub_minimums is None:
            return self.m
        return -_per_group(self.m, self.sub_minimums)

    def parts(self) -> Mapping[str, Floats]:
        """The arrays by name, without those that the type does not have."""
        named = {
            "d": self.d,
            "m": self.m,
            "sub_scales": self.sub_scales,
            "sub_minimums": self.sub_minimums,
        }
        return {name: array for name, array in named.items() if array is not None}

    def where(self, better: npt.NDArray[np.bool_], other: "BlockGrid") -> "BlockGrid":
        """`other` in the blocks where `better` (bool [out, blocks]) holds, else this one."""
        theirs, chosen = other.parts(), dict[str, Floats]()
        for name, mine in self.parts().items():
            mask = np.repeat(better, mine.shape[1] // better.shape[1], axis=1)
            chosen[name] = np.where(mask, theirs[name], mine)
        return replace(self, **chosen)  # type: ignore[arg-type]

    def tensor(self, codes: Codes) -> QuantizedTensor:
        """The canonical form of int8 codes [out, in] on this grid."""
        d, m = self.d.astype(np.float16), None if self.m is None else self.m.astype(np.float16)
        if self.sub_scales is None:
            return QuantizedTensor(SCHEMES[self.kind], codes, d, minimum=m)
        sub, least = self.sub_scales.astype(np.int8), self.sub_minimums
        minimums = None if least is None else least.astype(np.uint8)
        return quantized_tensor(self.kind, codes, NestedScales(d, sub, m, minimums))


def joined(grids: list[BlockGrid]) -> BlockGrid:
    """The grids of consecutive rows as one."""
    names = grids[0].parts()
    parts = {name: np.concatenate([grid.parts()[name] for grid in grids]) for name in names}
    return BlockGrid(grids[0].kind, **parts)


def half(values: npt.NDArray[np.floating]) -> Floats:
    """`values` rounded to float16, of the same sign and never 0 or infinite."""
    limits = np.finfo(np.float16)
    size = np.clip(np.abs(values), limits.smallest_subnormal, limits.max)
    rounded: Floats = np.copysign(size, values).astype(np.float16).astype(np.float32)
    return rounded


def _per_group(factors: Floats, integers: Floats) -> Floats:
    return np.repeat(factors, integers.shape[1] // factors.shape[1], axis=1) * integers
