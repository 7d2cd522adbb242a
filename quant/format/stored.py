"""Integers as a file holds them, for those who lay them out anew and need no array of codes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from quant.format.packing import packed_words
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
class FileBytes:
    """Bytes [rows, row_bytes] that still lie in a file, from byte `begin` on, without gaps."""

    path: Path
    begin: int
    rows: int
    row_bytes: int


@dataclass(frozen=True)
class PackedRows:
    """data: uint8 [out, bytes per row]; a row is blocks of `block` codes in `block_bytes` bytes.
    What the planes add up to, less `offset`, is a code; those beyond the last column are nobody's.

    turned: data is uint8 [bytes per row / 4, 4 * out], with four bytes of each row side by side.
    """

    data: npt.NDArray[np.uint8] | FileBytes
    block: int
    block_bytes: int
    planes: Sequence[Plane]
    offset: int = 0
    turned: bool = False


def dense_rows(
    data: npt.NDArray[np.uint8] | FileBytes, num_bits: int, columns: int, turned: bool = False
) -> PackedRows | None:
    """Signed codes as `quant.format.packing.pack_signed` leaves them: a dense stream of bits, in
    which blocks are as long as the words of a row allow; None where these hold no whole block."""
    words = packed_words(columns, num_bits)
    sizes = ((codes, codes * num_bits // 8) for codes in (256, 128, 64, 32, 16, 8))
    for block, size in sizes:
        if size % 4 == 0 and -(-columns // block) * size <= 4 * words:
            planes = [Plane(0, size, 1, num_bits)]
            return PackedRows(data, block, size, planes, 1 << (num_bits - 1), turned)
    return None


def byte_rows(data: npt.NDArray[np.uint8] | FileBytes, columns: int) -> PackedRows | None:
    """A signed code in each byte; None where rows are not whole blocks of eight."""
    for block in (64, 32, 16, 8):
        if columns % block == 0:
            return PackedRows(data, block, block, [Plane(0, block, block, 8)])
    return None


@dataclass(frozen=True, eq=False)
class StoredIntegers:
    """A QuantizedTensor of integers whose codes are still in `rows`; groups are neighbours.

    scale, minimum: float [out, groups], views of the file where they lie there; or, with
    `sub_scale` int8 [out, groups], those of several groups, which each multiplies by its own.
    input_scale: as QuantizedTensor has it.
    """

    scheme: IntScheme
    shape: tuple[int, int]
    rows: PackedRows
    scale: FloatArray
    zero_point: npt.NDArray[np.int8] | None = None
    minimum: FloatArray | None = None
    sub_scale: npt.NDArray[np.int8] | None = None
    sub_minimum: npt.NDArray[np.int8] | None = None
    input_scale: float | None = None

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


@dataclass(frozen=True)
class StoredFloats:
    """A float matrix that still lies in its file. dtype: "float32", "float16" or "bfloat16"."""

    dtype: str
    shape: tuple[int, int]
    data: FileBytes


@runtime_checkable
class HoldsFloats(Protocol):
    """A WeightSource that can say where float matrices lie."""

    def floats(self, name: str) -> StoredFloats | None:
        """None where a weight has to be loaded."""
        ...
