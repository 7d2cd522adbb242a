"""Whole models with keys and values in 16 bits and in 8, beside the oracle that rounds them too."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime.executors.cpu import CpuExecutor
from runtime.executors.torch import TorchExecutor
from runtime.executors.torch.rounding import round_cached
from runtime.kernels.cpu._native import instruction_sets
from runtime.kv_cache import KvCacheType
from tests.runtime.executors.test_cpu_executor import PAGE_SIZE, TOKENS, Session, whole
from tests.tiny import tiny_model

NARROW: tuple[KvCacheType, ...] = ("float16", "bfloat16", "int8")
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen3": {},
    "gemma2": {"sliding_window": 9},
}
POOL: dict[str, Any] = {"num_pages": 40, "page_size": PAGE_SIZE}


def rms(x: npt.NDArray[np.float32]) -> float:
    return float(np.sqrt(np.mean(np.square(x.astype(np.float64)))))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("cache", NARROW)
def test_the_executor_is_off_as_the_oracle_is(family: str, cache: KvCacheType) -> None:
    """Sums in float32 move a number by some 1e-6 of its size, and so one in some thousands across
    the middle between two codes, by a step; rounding itself moves all, by 0.3 steps in the mean.
    So a tenth of what rounding does is far more than the executors may differ by."""
    model, batch = tiny_model(family, **FAMILIES[family]), whole(TOKENS)
    exact = TorchExecutor(model, **POOL).step(batch)
    expected = TorchExecutor(model, cache=cache, **POOL).step(batch)
    found = CpuExecutor(model, cache=cache, **POOL).step(batch)
    lost = rms(expected - exact)
    assert rms(found - expected) < lost / 10
    assert lost < rms(exact) * {"float16": 1e-3, "bfloat16": 8e-3, "int8": 0.03}[cache]


@pytest.mark.parametrize("isa", instruction_sets())
@pytest.mark.parametrize("cache", NARROW)
def test_company_chunks_pages_and_threads_change_no_bit(isa: str, cache: KvCacheType) -> None:
    model = tiny_model("gemma2", sliding_window=9)
    options: dict[str, Any] = {"instruction_set": isa, "cache": cache, **POOL}
    session = Session(CpuExecutor(model, threads=1, **options), [TOKENS], seed=0)
    session.step((0, len(TOKENS)))
    expected = session.result(0)
    busy = Session(CpuExecutor(model, threads=2, **options), [TOKENS, TOKENS], seed=1)
    rest = len(TOKENS) - 8
    for parts in [[(0, 7)], [(1, 13), (0, 1)], [(0, rest), (1, len(TOKENS) - 13)]]:
        busy.step(*parts)
    for sequence in range(2):
        np.testing.assert_array_equal(busy.result(sequence), expected)


@settings(max_examples=50)
@given(seed=st.integers(0, 999), exponent=st.integers(-44, 38))
def test_int8_is_off_by_half_a_scale_at_most(seed: int, exponent: int) -> None:
    x = np.random.default_rng(seed).uniform(-1, 1, (3, 2, 20)) * 10.0**exponent
    numbers = torch.from_numpy(x.astype(np.float32))
    scale = (numbers.abs().amax(-1, keepdim=True).double() / 127).clamp(min=2.0**-126)
    error = (round_cached(numbers, "int8").double() - numbers.double()).abs()
    assert (error <= scale * (0.5 + 128 * 2.0**-23)).all()


def test_what_is_no_number_stays_none() -> None:
    x = torch.ones(2, 2, 4)
    x[0, 0, 1], x[1, 1, 2] = torch.nan, torch.inf
    found = round_cached(x, "int8")
    assert found[0, 0].isnan().all() and found[1, 1].isnan().all()
    assert (found[0, 1] == 1).all() and (found[1, 0] == 1).all()
