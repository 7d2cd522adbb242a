"""Pages that are given back take no memory, and nobody else's numbers change."""

import resource
from pathlib import Path

import numpy as np
import pytest

from runtime.engine.batch import GivesBack, StepBatch
from runtime.executors.cpu import CpuExecutor
from runtime.kv_cache import KvCacheType
from tests.tiny import tiny_model

PAGE = 32
PAGES = 101


def batch(tokens: int, first: int, pages: list[int]) -> StepBatch:
    """Tokens [first, first + tokens) of one sequence, and logits of the last."""
    return StepBatch(
        token_ids=(np.arange(first, first + tokens) * 7 % 300 + 3).astype(np.int32),
        positions=np.arange(first, first + tokens, dtype=np.int32),
        query_starts=np.array([0, tokens], np.int32),
        page_table=np.array([pages], np.int32),
        logit_rows=np.array([tokens - 1], np.int32),
    )


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("cache", ["bfloat16", "int8", "float32"])
def test_only_what_is_given_back_is_gone(cache: KvCacheType) -> None:
    executor = CpuExecutor(tiny_model(), num_pages=PAGES, page_size=PAGE, threads=1, cache=cache)
    mine, others = [7, 3, 50], [2, 4, 6, 8, 51, 49, 100]
    executor.step(batch(70, 0, mine))
    executor.step(batch(7 * PAGE, 0, others))
    executor.give_back(others)
    again = executor.step(batch(1, 70, mine)).copy()
    executor.step(batch(71, 0, [9, 10, 11]))
    assert np.array_equal(executor.step(batch(1, 70, [9, 10, 11])), again)
    # A page that was given back is as good as a new one.
    executor.step(batch(70, 0, others[:3]))
    assert np.array_equal(executor.step(batch(1, 70, others[:3])), again)
    for bad in (0, PAGES, -1):
        with pytest.raises(ValueError, match="not in the pool"):
            executor.give_back([5, bad])
    assert isinstance(executor, GivesBack)
    executor.close()


def test_what_is_given_back_takes_no_memory() -> None:
    model = tiny_model(hidden_size=256, max_positions=PAGE * PAGES)
    executor = CpuExecutor(model, num_pages=PAGES, page_size=PAGE, threads=1, max_step_tokens=PAGE)
    every = list(range(1, PAGES))
    for at in range(len(every)):
        executor.step(batch(PAGE, at * PAGE, every))
    full = resident_bytes()
    executor.give_back(every)
    assert full - resident_bytes() > 0.7 * executor.cache_bytes
    executor.close()
