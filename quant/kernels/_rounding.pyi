"""The compiled extension: arrays are float32 and C-contiguous, and are used in place, without the
GIL. Every instruction set gives the same bits, and a row's do not depend on where it stands.

levels: whole numbers from `lowest` to `highest`, worth (level - zero) * scale. isa: one of
`instruction_sets()`, or "auto", the best of them. Raises ValueError when shapes do not agree.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float32]
_Indices = npt.NDArray[np.int32]

def instruction_sets() -> list[str]:
    """What this processor has, best first."""

def feedback(
    left: _Floats,
    scale: _Floats,
    zero: _Floats,
    group_of: _Indices,
    mixing: _Floats,
    lowest: float,
    highest: float,
    levels: _Floats,
    errors: _Floats,
    isa: str = "auto",
) -> None:
    """GPTQ on a chunk of at most 128 columns: `left` [columns, rows] is rounded row by row of it.

    scale, zero: [groups, rows]; group_of: [columns]. mixing: [columns, columns], of which row j
    says by how much the errors of columns before j lower column j; its diagonal divides the errors.
    Writes levels and errors, [columns, rows].
    """

def sweep(
    gradient: _Floats,
    scale: _Floats,
    zero: _Floats,
    group_of: _Indices,
    mixing: _Floats,
    lowest: float,
    highest: float,
    levels: _Floats,
    changes: _Floats,
    isa: str = "auto",
) -> None:
    """Coordinate descent on a chunk, with arguments as of `feedback`.

    gradient: (W - Q) H as it stands; mixing: H of the chunk's columns. Moves `levels` and writes
    `changes`, by how much each value grew. `gradient` itself is left as it is.
    """

def search(
    weight: _Floats,
    importance: _Floats,
    lowest: float,
    highest: float,
    symmetric: bool,
    mirrored: bool,
    lowest_zero: float,
    kept: int,
    smallest: float,
    largest: float,
    shrinks: Sequence[float],
    refits: int,
    scale: _Floats,
    zero: _Floats,
    isa: str = "auto",
) -> None:
    """Grids of least error sum(importance * (weight - rounded)**2): weight [out, in], importance
    [in]. Writes scale and zero, [out, groups].

    Candidates: `shrinks` times the range, then `refits` rounds of least squares; with `mirrored`,
    negative scales as well, if symmetric. Scales are stored with `kept` of 23 mantissa bits, from
    `smallest` to `largest` in magnitude. lowest_zero: smallest zero point, counted from lowest.
    """
