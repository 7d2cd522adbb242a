"""Benchmark arithmetic on an executor whose time is counted, not measured."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from runtime.bench import measure, read_bytes_per_second, resident_bytes
from runtime.engine.batch import StepBatch
from runtime.engine.request import RequestError


@dataclass
class TimedExecutor:
    """A step costs 10 ms and 1 ms more for each token; `now` is the only clock."""

    vocab_size: int = 16
    max_positions: int = 512
    page_size: int = 16
    num_pages: int = 100
    now: float = 0.0

    def step(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        self.now += 0.010 + 0.001 * len(batch.token_ids)
        return np.zeros((len(batch.logit_rows), self.vocab_size), np.float32)

    def close(self) -> None: ...

    def clock(self) -> float:
        return self.now


@pytest.mark.parametrize("streams", [1, 2, 4])
@pytest.mark.parametrize("rounds", [1, 3])
def test_rates_and_latencies_follow_the_counted_time(streams: int, rounds: int) -> None:
    executor = TimedExecutor()
    run = measure(
        executor,
        streams,
        prompt_tokens=32,
        output_tokens=9,
        decode_limit=200.0,
        rounds=rounds,
        clock=executor.clock,
    )
    prefill = 0.010 + 0.032 * streams  # all prompts fit one step
    step = 0.010 + 0.001 * streams
    assert run.prefill_tokens_per_second == pytest.approx(32 * streams / prefill)
    assert run.decode_tokens_per_second == pytest.approx(streams / step)
    assert run.total_tokens_per_second == pytest.approx(41 * streams / (prefill + 8 * step))
    assert run.fraction_of_limit == pytest.approx(1 / step / 200.0)
    assert run.ttft_ms == pytest.approx(dict.fromkeys(("p50", "p90", "p99"), prefill * 1e3))
    assert run.tpot_ms == pytest.approx(dict.fromkeys(("p50", "p90", "p99"), step * 1e3))
    assert run.itl_ms == pytest.approx(run.tpot_ms)


def test_one_output_token_has_no_time_per_further_token() -> None:
    executor = TimedExecutor()
    run = measure(
        executor, 2, prompt_tokens=4, output_tokens=1, decode_limit=1.0, clock=executor.clock
    )
    assert run.decode_tokens_per_second == 0.0
    assert run.tpot_ms["p99"] == 0.0


def test_requests_that_cannot_fit_are_refused() -> None:
    with pytest.raises(RequestError, match="512"):
        measure(TimedExecutor(), 1, prompt_tokens=512, output_tokens=9, decode_limit=1.0)


def test_memory_bandwidth_is_bytes_over_the_best_time() -> None:
    ticks = iter([0.0, 2.0, 2.0, 3.0])
    rate = read_bytes_per_second(1, size_bytes=1 << 20, repeat=2, clock=lambda: next(ticks))
    assert rate == float(1 << 20)


def test_resident_bytes_sees_new_memory() -> None:
    before = resident_bytes()
    held = np.ones(8 << 20, np.int64)
    assert resident_bytes() - before > held.nbytes // 2
