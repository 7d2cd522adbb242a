"""How fast floats become ggml's blocks.

`python -m benchmarks.gguf_encoding [--types q4_k,q6_k] [--weights 8388608] [--threads N]` prints
millions of weights in a second of wall time, and in one of processor time over all threads, for
the whole way: scales searched, codes chosen, blocks packed.
"""

import argparse
import time

import numpy as np

from quant.format.ggml_search import EFFORTS, round_blocks
from quant.format.gguf_blocks import encode
from quant.format.gguf_types import TYPE_BY_NAME
from quant.format.native import _blocks

COLUMNS = 4096


def speed(name: str, weights: int, threads: int | None) -> tuple[float, float]:
    """(per second of wall time, per second of processor time), in millions of weights."""
    random = np.random.default_rng(0)
    weight = random.standard_normal((max(1, weights // COLUMNS), COLUMNS), np.float32)
    kind = TYPE_BY_NAME[name]
    round_blocks("warm", kind, weight[:1])
    wall, work = time.perf_counter(), time.process_time()
    encode("w", kind, round_blocks("w", kind, weight, threads=threads))
    wall, work = time.perf_counter() - wall, time.process_time() - work
    return weight.size / wall / 1e6, weight.size / work / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--types", default=",".join(EFFORTS), type=str.upper)
    parser.add_argument("--weights", type=int, default=1 << 23)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    print(f"instruction sets: {', '.join(_blocks.instruction_sets())}")
    for name in options.types.split(","):
        wall, work = speed(name, options.weights, options.threads)
        print(f"{name:7} {wall:7.1f} M/s of wall time, {work:7.1f} M/s of processor time")


if __name__ == "__main__":
    main()
