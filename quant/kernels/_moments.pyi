"""The compiled extension: sums of outer products of bfloat16 numbers, for processors that multiply
them. Numbers are passed as their bits. Nothing is copied, and nothing holds the GIL.

Raises ValueError when shapes do not agree or the processor cannot do it.
"""

import numpy as np
import numpy.typing as npt

_Bits = npt.NDArray[np.uint16]

def supported() -> bool:
    """Whether this processor can."""

def packed_shape(tokens: int, columns: int) -> tuple[int, int, int, int, int]:
    """The shape of rows [tokens, columns] once they are packed."""

def pack_rows(values: _Bits, packed: _Bits) -> None:
    """values: [tokens, columns]; packed: what is written, of `packed_shape`."""

def add_products(
    left: _Bits,
    right: _Bits,
    weight: float,
    upper: bool,
    first: int,
    last: int,
    sum: npt.NDArray[np.float32],
) -> None:
    """sum += weight * left^T right, float32 [left's columns, right's columns], for the panels of 48
    rows from `first` up to `last`. left, right: packed rows of as many tokens. upper: leave out
    panels below the diagonal. Sums are float32, chunk by chunk of 256 tokens, in order."""
