"""Runs native ops on their own: rows of x come in through an embedding, which copies them."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from runtime.kernels.cpu._native import Matrix, Plan, ThreadPool, instruction_sets

Floats = npt.NDArray[np.float32]
Build = Callable[[Plan, int], int]
"""Adds ops that read the buffer it is given; returns the one that holds the result."""

ISAS = instruction_sets()
UNIT = 2.0**-24
"""Largest relative error of one float32 rounding."""
POOLS = {threads: ThreadPool(threads) for threads in (1, 2, 5)}


def gamma(roundings: int) -> float:
    """Relative error of a chain of that many roundings (Higham 2002, section 3.1)."""
    return roundings * UNIT / (1 - roundings * UNIT)


def random_floats(shape: tuple[int, ...], seed: int) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run_rows(
    x: Floats,
    build: Build,
    isa: str,
    *,
    threads: int = 1,
    positions: npt.NDArray[np.int32] | None = None,
    page_table: npt.NDArray[np.int32] | None = None,
    page_size: int = 16,
    num_pages: int = 8,
) -> Floats:
    """The result for every row of x, as one step of one sequence."""
    pool = POOLS[threads]
    plan = Plan(pool, isa)
    source = plan.add_buffer(x.shape[1], False)
    plan.add_embed(source, Matrix.from_numbers(x, "float32", pool))
    result = build(plan, source)
    rows = len(x)
    plan.allocate(num_pages, page_size, 1, rows)
    order = np.arange(rows, dtype=np.int32)
    if positions is None:
        positions, page_table = np.zeros_like(order), np.ones((1, 1), np.int32)
    assert page_table is not None
    starts = np.array([0, rows], np.int32)
    return plan.step(order, positions, starts, page_table, order, result).copy()
