"""Which tile sizes are fastest on this chip: what `runtime/kernels/triton/tuning.py` should hold.

    python -m benchmarks.on_gpu.tune [--seconds 300]

Prints, for each number of rows of the tables, the configs of 4-bit and of rounded products by time,
the best first, as lines of JSON; whatever ends this early leaves what was found. What a chip has no
room for is left out.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product

import torch

from benchmarks.on_gpu.clock import DEVICE, Work, seconds_each
from benchmarks.on_gpu.sizes import SIZES
from runtime.kernels.triton.norm import round_rows
from runtime.kernels.triton.rounded import RoundedWeight, rounded_matmul
from runtime.kernels.triton.tuning import MatmulConfig, RoundedConfig, num_processors
from runtime.kernels.triton.weight_only import pack_integer, weight_only_matmul

ROWS = (1, 32, 128, 2048)
IN, OUT, GROUP = SIZES.columns_in, SIZES.columns_out, 128
Config = MatmulConfig | RoundedConfig


def packed_configs(rows: int) -> Iterator[MatmulConfig]:
    """Tiles that hold no more than twice the rows, and sums in as many parts as fill the chip."""
    tall = [size for size in (16, 32, 64, 128) if size < 2 * rows or size == 16]
    for height, width, warps, stages in product(tall, (32, 64, 128), (4, 8), (2, 3, 4)):
        tiles = -(-rows // height) * -(-OUT // width)
        most = max(1, 4 * num_processors() // tiles)
        for splits in sorted({1, min(2, most), min(4, most)}):
            yield MatmulConfig(height, width, splits, warps, stages, scale_first=rows > 32)


def rounded_configs(rows: int) -> Iterator[RoundedConfig]:
    tall = [size for size in (16, 32, 64, 128) if size < 2 * rows or size == 16]
    for height, width, depth, warps, stages in product(
        tall, (32, 64, 128), (64, 128, 256), (4, 8), (3, 4)
    ):
        yield RoundedConfig(height, width, depth, warps, stages)


def packed_works(rows: int, config: MatmulConfig) -> list[Work]:
    codes = torch.randint(-8, 8, (OUT, IN), dtype=torch.int8, device=DEVICE)
    scale = torch.ones(OUT, IN // GROUP, dtype=torch.bfloat16, device=DEVICE)
    x = torch.randn(rows, IN, dtype=torch.bfloat16, device=DEVICE)
    weights = [pack_integer(codes, scale, None, 4, GROUP) for _ in range(SIZES.cold)]
    return [partial(weight_only_matmul, x, weight, None, config) for weight in weights]


def rounded_works(rows: int, config: RoundedConfig) -> list[Work]:
    x = round_rows(torch.randn(rows, IN, device=DEVICE), "e4m3")
    made = round_rows(torch.randn(OUT, IN, device=DEVICE), "e4m3")
    weights = [RoundedWeight(made.codes.clone(), made.scale) for _ in range(SIZES.cold)]
    return [partial(rounded_matmul, x, weight, torch.bfloat16, None, config) for weight in weights]


def fastest(until: float, rows: int) -> Iterator[tuple[str, float, Config]]:
    """Those of one number of rows that could be timed before `until`."""
    timed: list[tuple[str, float, Config]] = []
    for config in packed_configs(rows):
        timed += _timed("int4 x bfloat16", until, config, partial(packed_works, rows, config))
    for each in rounded_configs(rows):
        timed += _timed("e4m3 x e4m3", until, each, partial(rounded_works, rows, each))
    yield from sorted(timed, key=lambda found: found[:2])


def _timed(
    name: str, until: float, config: Config, works: "partial[list[Work]]"
) -> list[tuple[str, float, Config]]:
    if time.monotonic() > until:
        return []
    try:
        return [(name, seconds_each(works()), config)]
    except Exception as error:  # what a chip has no room for
        print(f"{config}: {type(error).__name__}", file=sys.stderr)
        return []


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300.0)
    seconds = parser.parse_args(arguments).seconds
    begin = time.monotonic()
    for number, rows in enumerate(ROWS, start=1):
        for name, took, config in fastest(begin + seconds * number / len(ROWS), rows):
            told = {"rows": rows, "what": name, "us": 1e6 * took, "config": asdict(config)}
            print(json.dumps(told), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
