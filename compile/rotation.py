"""What a rotary embedding turns by, computed in float64."""

import numpy as np
import numpy.typing as npt

from compile.program import RopeSpec


def frequencies(spec: RopeSpec) -> npt.NDArray[np.float64]:
    """Radians per position of each pair, float64 [dimension / 2]."""
    pairs = np.arange(spec.dimension // 2, dtype=np.float64)
    base: npt.NDArray[np.float64] = spec.theta ** (-2.0 * pairs / spec.dimension)
    return base if spec.factors is None else base / np.array(spec.factors, np.float64)


def cos_and_sin(
    spec: RopeSpec, positions: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    """Of every position, float32 [positions, dimension / 2] each: rounded once, after the attention
    factor has multiplied them."""
    angles = np.arange(positions, dtype=np.float64)[:, None] * frequencies(spec)
    cos, sin = np.cos(angles) * spec.attention_factor, np.sin(angles) * spec.attention_factor
    return cos.astype(np.float32), sin.astype(np.float32)
