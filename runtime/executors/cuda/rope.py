"""cos and sin of every position."""

import numpy as np
import torch

from compile.program import RopeSpec
from runtime.kernels.triton.cache import RopeTable


def rope_table(spec: RopeSpec, positions: int, device: torch.device) -> RopeTable:
    """cos and sin of every position, computed in float64."""
    pairs = np.arange(spec.dimension // 2, dtype=np.float64)
    frequencies = spec.theta ** (-2.0 * pairs / spec.dimension)
    if spec.factors is not None:
        frequencies = frequencies / np.array(spec.factors, np.float64)
    angles = np.arange(positions, dtype=np.float64)[:, None] * frequencies
    cos, sin = (
        torch.from_numpy((function(angles) * spec.attention_factor).astype(np.float32)).to(device)
        for function in (np.cos, np.sin)
    )
    return RopeTable(cos, sin)
