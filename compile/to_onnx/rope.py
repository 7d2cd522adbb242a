"""Cosines and sines of every position, computed in float64 and rounded once."""

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from compile.program import Program, Rope, RopeSpec
from compile.rotation import cos_and_sin


def rope_tables(program: Program) -> Mapping[str, RopeSpec]:
    """Names of the tables [max_positions, dimension / 2] and what each is computed from."""
    specs = dict.fromkeys(op.rope for op in program.ops if isinstance(op, Rope))
    return {name: spec for index, spec in enumerate(specs) for name in table_names(index)}


def table_names(index: int) -> tuple[str, str]:
    """The cosines and the sines of the rotation of that number."""
    return f"rope.{index}.cos", f"rope.{index}.sin"


def rope_table(name: str, spec: RopeSpec, positions: int) -> npt.NDArray[np.float32]:
    """float32 [positions, dimension / 2], multiplied by the attention factor."""
    cos, sin = cos_and_sin(spec, positions)
    return cos if name.endswith(".cos") else sin
