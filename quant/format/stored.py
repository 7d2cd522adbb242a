"""Integers as a file holds them, for those who lay them out anew and need no array of codes."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from quant.format.scheme import IntScheme
from quant.format.tensor import FloatArray


@dataclass(frozen=True)
class Plane:
    """Some bits of every code of a block: `bits` of them, to be shifted left by `shift`, in the
    `bytes` bytes of the block from `start` on.

    Each run of `lane` bytes holds 8 / bits runs of `lane` codes, the first in the lowest bits.
    """

    start: int
    bytes: int
    lane: int
    bits: int
    shift: int = 0


@dataclass(frozen=True)
class PackedRows:
    """data: uint8 [out, bytes per row]; a row is blocks of `block` codes in `block_bytes` bytes.
    What the planes add up to, less `offset`, is a code; those beyond the last column are nobody's.
    """

    data: npt.NDArray[np.uint8]
    block: int
    block_bytes: int
    planes: Sequence[Plane]
    offset: int = 0


@dataclass(frozen=True, eq=False)
class StoredIntegers:
    """A QuantizedTensor of integers whose codes are still in `rows`; groups are neighbours.

    scale, minimum: float [out, groups], views of the file where they lie there; or, with
    `sub_scale` int8 [out, groups], those of several groups, which each multiplies by its own.
    """

    scheme: IntScheme
    shape: tuple[int, int]
    rows: PackedRows
    scale: FloatArray
    zero_point: npt.NDArray[np.int8] | None = None
    minimum: FloatArray | None = None
    sub_scale: npt.NDArray[np.int8] | None = None
    sub_minimum: npt.NDArray[np.int8] | None = None

    def group_starts(self) -> npt.NDArray[np.int32]:
        """int32 [groups + 1]: the first column of each group, and the number of columns."""
        columns = self.shape[1]
        size = min(self.scheme.group_size(columns), columns)
        return np.append(np.arange(0, columns, size), columns).astype(np.int32)


@runtime_checkable
class HoldsIntegers(Protocol):
    """A WeightSource that can hand integers over as they are stored."""

    def stored(self, name: str) -> StoredIntegers | None:
        """None where a weight has to be loaded. What it holds is read from the file when it is
        used; `forget` says when that is over."""
        ...

    def forget(self, name: str) -> None: ...
