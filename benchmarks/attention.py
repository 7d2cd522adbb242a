"""What attention alone takes, for each type of its cache.

`python -m benchmarks.attention [--threads N] [--heads 9] [--kv-heads 3] [--head-dim 64]`

Microseconds of one layer, keys and values stored included, the median and the best of several: a
prompt of 512 tokens, one token of one stream and of each of 16 behind 160, and one behind 8000.
Layers take turns, as they do in a step; pages lie in no order.
"""

import argparse
from statistics import median

import numpy as np

from runtime.kernels.cpu._native import Matrix, Plan, ThreadPool
from runtime.machine import available_threads

LAYERS, PAGE_SIZE, VOCABULARY, CHUNK, ROUNDS = 12, 32, 64, 512, 21
TYPES = ("float32", "float16", "bfloat16", "int8")
CASES = {"prompt of 512": (1, 0, 512), "1 at 160": (1, 159, 1), "16 at 160": (16, 159, 1)}
CASES |= {"1 at 8000": (1, 7999, 1)}
"""Streams, tokens of each that are there before, and tokens of each in the step."""


def plan_of(pool: ThreadPool, sizes: tuple[int, int, int], number: str) -> tuple[Plan, int]:
    """Layers of attention over rows that an embedding copies, and the buffer of what they make."""
    heads, kv_heads, head_dim = sizes
    widths = (heads * head_dim, kv_heads * head_dim, kv_heads * head_dim)
    rows = np.random.default_rng(0).standard_normal((VOCABULARY, sum(widths))).astype(np.float32)
    plan = Plan(pool)
    source = plan.add_buffer(sum(widths), False)
    plan.add_embed(source, Matrix.from_numbers(rows, "float32", pool))
    q, k, v = (plan.add_buffer(width, False) for width in widths)
    for part, start in ((q, 0), (k, widths[0]), (v, sum(widths[:2]))):
        plan.add_slice(part, source, start)
    out = plan.add_buffer(widths[0], False)
    for _ in range(LAYERS):
        cache = plan.add_cache(kv_heads, head_dim, number)
        plan.add_attend(out, q, k, v, cache, *sizes, head_dim**-0.5, 0, 0.0, rounded=True)
    return plan, out


def step(plan: Plan, out: int, table: np.ndarray, first: int, count: int) -> float:
    """Seconds that attention took in all layers."""
    positions = np.tile(np.arange(first, first + count, dtype=np.int32), len(table))
    starts = np.arange(len(table) + 1, dtype=np.int32) * count
    plan.profile(True)
    plan.step(positions % VOCABULARY, positions, starts, table, np.zeros(1, np.int32), out)
    return sum(before + behind for name, before, behind in plan.timings() if name == "attention")


def times(pool: ThreadPool, sizes: tuple[int, int, int], number: str, case: str) -> list[float]:
    """Microseconds of one layer, round by round."""
    streams, first, count = CASES[case]
    plan, out = plan_of(pool, sizes, number)
    pages = -(-(first + count) // PAGE_SIZE)
    plan.allocate(pages * streams + 1, PAGE_SIZE, CHUNK, VOCABULARY)
    table = 1 + np.random.default_rng(0).permutation(pages * streams).astype(np.int32)
    table = table.reshape(streams, pages)
    for start in range(0, first, CHUNK // streams):
        step(plan, out, table, start, min(CHUNK // streams, first - start))
    return [1e6 / LAYERS * step(plan, out, table, first, count) for _ in range(ROUNDS)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--heads", type=int, default=9)
    parser.add_argument("--kv-heads", type=int, default=3)
    parser.add_argument("--head-dim", type=int, default=64)
    asked = parser.parse_args()
    pool = ThreadPool(asked.threads)
    sizes = (asked.heads, asked.kv_heads, asked.head_dim)
    for case in CASES:
        for number in TYPES:
            found = times(pool, sizes, number, case)
            print(f"{case:14s} {number:9s} {median(found):9.1f} us, best {min(found):9.1f}")


if __name__ == "__main__":
    main()
