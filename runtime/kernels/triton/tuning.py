"""Tile sizes by chip and shape, kept as data.

Guesses until `python -m benchmarks.on_gpu.tune` has been run on a chip; what each of them takes of
it, `make test-kernels` says.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import TypeVar

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


@dataclass(frozen=True)
class RoundedConfig:
    """depth: input columns of one turn of the loop."""

    rows: int
    columns: int
    depth: int
    warps: int = 4
    stages: int = 4


@dataclass(frozen=True)
class AttentionConfig:
    """keys: of a tile, at most a page."""

    keys: int
    warps: int = 4
    stages: int = 3


@dataclass(frozen=True)
class Chip:
    """shared: bytes of shared memory that one program may have (CUDA C++ Programming Guide, table
    of compute capabilities). weight_only, rounded: (rows up to, config), ascending; more rows than
    the last take its config as well. attention: (query rows up to, config)."""

    shared: int
    weight_only: tuple[tuple[int, MatmulConfig], ...]
    rounded: tuple[tuple[int, RoundedConfig], ...]
    attention: tuple[tuple[int, AttentionConfig], ...]


_MANY = 1 << 30
_HOPPER = Chip(
    232448,
    (
        (16, MatmulConfig(16, 64, warps=4, stages=4)),
        (32, MatmulConfig(32, 64, warps=4, stages=4)),
        (128, MatmulConfig(64, 128, warps=4, stages=3, scale_first=True)),
        (_MANY, MatmulConfig(128, 128, warps=8, stages=3, scale_first=True)),
    ),
    (
        (16, RoundedConfig(16, 32, 256)),
        (32, RoundedConfig(32, 64, 128)),
        (128, RoundedConfig(64, 128, 128)),
        (_MANY, RoundedConfig(128, 128, 128, warps=8, stages=3)),
    ),
    ((32, AttentionConfig(32, 4, 3)), (_MANY, AttentionConfig(32, 8, 2))),
)
_AMPERE = replace(
    _HOPPER,
    shared=166912,
    weight_only=(
        *_HOPPER.weight_only[:2],
        (128, MatmulConfig(64, 64, warps=4, stages=3, scale_first=True)),
        (_MANY, MatmulConfig(128, 64, warps=8, stages=3, scale_first=True)),
    ),
)
_SMALL = Chip(
    101376,
    (
        (16, MatmulConfig(16, 64, warps=4, stages=4)),
        (32, MatmulConfig(32, 64, warps=4, stages=3)),
        (128, MatmulConfig(64, 64, warps=4, stages=2, scale_first=True)),
        (_MANY, MatmulConfig(128, 64, warps=8, stages=2, scale_first=True)),
    ),
    (
        (16, RoundedConfig(16, 32, 256)),
        (32, RoundedConfig(32, 64, 128)),
        (128, RoundedConfig(64, 64, 128, stages=3)),
        (_MANY, RoundedConfig(128, 128, 64, warps=8, stages=3)),
    ),
    ((32, AttentionConfig(32, 4, 2)), (_MANY, AttentionConfig(32, 8, 2))),
)
CHIPS: dict[tuple[int, int], Chip] = {
    (8, 0): _AMPERE,
    (8, 6): _SMALL,
    (8, 7): _AMPERE,
    (8, 9): _SMALL,
    (9, 0): _HOPPER,
    (10, 0): _HOPPER,
    (10, 3): _HOPPER,
    (12, 0): _SMALL,
}
"""By compute capability: Ampere (A100; A40 and RTX 30; Orin), Ada, Hopper, and Blackwell, for which
nobody has chosen yet."""
LEAST_CAPABILITY = (8, 0)
"""Older chips have no bfloat16."""

PROGRAMS_PER_PROCESSOR = 2
"""How many programs a streaming multiprocessor should have to hide the latency of loads."""

_Config = TypeVar("_Config")


def chip() -> Chip:
    """The current device's, or that of the next older one that is known; Hopper's without any."""
    known = max((each for each in CHIPS if each <= capability()), default=LEAST_CAPABILITY)
    return CHIPS[known]


def weight_only_config(rows: int, in_features: int, out_features: int) -> MatmulConfig:
    """The config for a product of this shape; splits fill a device that its tiles do not."""
    config = _for_rows(chip().weight_only, rows)
    tiles = -(-rows // config.rows) * -(-out_features // config.columns)
    wanted = PROGRAMS_PER_PROCESSOR * num_processors()
    splits = max(1, min(wanted // tiles, in_features // 512))
    return replace(config, splits=splits)


def rounded_config(rows: int) -> RoundedConfig:
    """The config for a product of int8 or e4m3 with this many rows."""
    return _for_rows(chip().rounded, rows)


def attention_config(rows: int, page_size: int, head_dim: int, width: int) -> AttentionConfig:
    """The config for so many query rows of a program. head_dim: as it is padded. width: bytes of
    one number of the cache."""
    config = _for_rows(chip().attention, rows)
    keys = min(config.keys, page_size)
    # Tiles of keys and values that are on their way, under the queries and the weights.
    each = 2 * keys * head_dim * max(width, 2)
    fit = max(1, chip().shared // 2 // each)
    return replace(config, keys=keys, stages=min(config.stages, fit))


def expert_rows(pairs: int, experts: int) -> int:
    """Rows of a block of one expert."""
    return 64 if pairs // experts >= 48 else 16


def experts_config(rows: int) -> MatmulConfig:
    """The config for blocks of so many rows (`expert_rows`)."""
    return replace(_for_rows(chip().weight_only, rows), rows=rows)


def _for_rows(table: Sequence[tuple[int, _Config]], rows: int) -> _Config:
    return next(config for limit, config in table if rows <= limit)


def num_processors() -> int:
    """Streaming multiprocessors of the current device; 1 where there is none."""
    if not _has_device():
        return 1
    return _processors_of(torch.cuda.current_device())


def capability() -> tuple[int, int]:
    """Of the current device; Hopper's where there is none."""
    if not _has_device():
        return (9, 0)
    return _capability_of(torch.cuda.current_device())


@cache
def _has_device() -> bool:
    return torch.cuda.is_available()


@cache
def _processors_of(device: int) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@cache
def _capability_of(device: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)
