"""The compiled extension: arrays are float32 and C-contiguous, and are used in place, without the
GIL. Every instruction set gives the same bits, and a block's do not depend on where it stands.

Raises ValueError when shapes do not agree.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

_Floats = npt.NDArray[np.float32]

def instruction_sets() -> list[str]:
    """What this processor has, best first."""

class Type:
    """A number type and how its scales are searched for.

    A block has `per_block` groups of `group` elements. levels: 16 rising ones of a codebook, or
    none: then whole numbers from `lowest` to `highest`. nested: the range of nested scales, or
    nothing. tries: pairs; without a minimum (reach of the largest magnitude, 0), else (step, start)
    as shares of the range. nudges: factors of a scale that is refined, `rounds` times. ends: where
    the largest nested scale is tried, which is then moved `nest_rounds` times.
    """

    def __init__(
        self,
        *,
        group: int,
        per_block: int,
        lowest: float,
        highest: float,
        minimum: bool,
        levels: Sequence[float],
        nested: Sequence[float],
        tries: Sequence[float],
        rounds: int,
        nudges: Sequence[float],
        ends: Sequence[float],
        nest_rounds: int,
    ) -> None: ...

def search(
    type: Type,
    weight: _Floats,
    importance: _Floats | None,
    known_scale: _Floats | None,
    known_minimum: _Floats | None,
    d: _Floats,
    m: _Floats | None,
    sub_scales: _Floats | None,
    sub_minimums: _Floats | None,
    codes: npt.NDArray[np.int8] | None,
    isa: str = "auto",
) -> None:
    """Writes scales of little error sum(importance * (weight - rounded)**2), and codes if wanted.

    weight, codes: [out, in]; importance: [in], None: all alike; known_scale, known_minimum,
    sub_scales, sub_minimums: [out, groups]; d, m: [out, blocks]. What a type lacks must be None.
    """
