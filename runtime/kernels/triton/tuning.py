"""Tile sizes by shape, kept as data."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class MatmulConfig:
    """rows, columns: of a program's tile of the result, powers of two, at least 16. splits: parts
    that the sum over input columns is cut into, each a program of its own. scale_first: see
    `weight_only_matmul`."""

    rows: int
    columns: int
    splits: int = 1
    warps: int = 4
    stages: int = 3
    scale_first: bool = False


PROGRAMS_PER_PROCESSOR = 2
"""How many programs a streaming multiprocessor should have to hide the latency of loads."""
CPU_PROCESSORS = 1

_FEW_ROWS = MatmulConfig(16, 64, warps=4, stages=4)
_SOME_ROWS = MatmulConfig(32, 64, warps=4, stages=4)
_MANY_ROWS = MatmulConfig(64, 128, warps=4, stages=3, scale_first=True)
_PROMPT = MatmulConfig(128, 128, warps=8, stages=3, scale_first=True)

WEIGHT_ONLY: tuple[tuple[int, MatmulConfig], ...] = (
    (16, _FEW_ROWS),
    (32, _SOME_ROWS),
    (128, _MANY_ROWS),
)
"""(rows up to, config), ascending; more rows than the last take `_PROMPT`."""


def weight_only_config(rows: int, in_features: int, out_features: int) -> MatmulConfig:
    """The config for a product of this shape; splits fill a device that its tiles do not."""
    config = next((config for limit, config in WEIGHT_ONLY if rows <= limit), _PROMPT)
    tiles = -(-rows // config.rows) * -(-out_features // config.columns)
    wanted = PROGRAMS_PER_PROCESSOR * num_processors()
    splits = max(1, min(wanted // tiles, in_features // 512))
    return MatmulConfig(
        config.rows, config.columns, splits, config.warps, config.stages, config.scale_first
    )


def num_processors() -> int:
    """Streaming multiprocessors of the current device; 1 where there is none."""
    if not torch.cuda.is_available():
        return CPU_PROCESSORS
    return torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count


@dataclass(frozen=True)
class RoundedConfig:
    """depth: input columns of one turn of the loop."""

    rows: int
    columns: int
    depth: int
    warps: int = 4
    stages: int = 4


ROUNDED: tuple[tuple[int, RoundedConfig], ...] = (
    (16, RoundedConfig(16, 32, 256)),
    (32, RoundedConfig(32, 64, 128)),
    (128, RoundedConfig(64, 128, 128)),
)
_ROUNDED_PROMPT = RoundedConfig(128, 128, 128, warps=8, stages=3)


def rounded_config(rows: int) -> RoundedConfig:
    """The config for a product of int8 or e4m3 with this many rows."""
    return next((config for limit, config in ROUNDED if rows <= limit), _ROUNDED_PROMPT)
