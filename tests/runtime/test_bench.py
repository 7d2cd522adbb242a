"""Benchmark arithmetic on an executor whose time is counted, not measured."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from runtime.bench import measure, resident_bytes
from runtime.engine.batch import StepBatch
from runtime.engine.request import RequestError
from runtime.yardstick import Yardstick

YARDSTICK = Yardstick(
    dense_bytes=500.0,
    cache_bytes=1.0,
    token_operations=80.0,
    row_operations=30.0,
    read_bytes=1e5,
    int8_operations=1e6,
)


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
        yardstick=YARDSTICK,
        rounds=rounds,
        clock=executor.clock,
    )
    prefill = 0.010 + 0.032 * streams  # all prompts fit one step
    step = 0.010 + 0.001 * streams
    assert run.prefill_tokens_per_second == pytest.approx(32 * streams / prefill)
    assert run.decode_tokens_per_second == pytest.approx(streams / step)
    assert run.total_tokens_per_second == pytest.approx(41 * streams / (prefill + 8 * step))
    # Weights once a step, keys and values of 32 + 9 / 2 tokens on average.
    read = 500.0 + streams * 36.5
    assert run.decode_fractions.bandwidth == pytest.approx(read / step / 1e5)
    assert run.decode_fractions.int8 == pytest.approx(streams * 110 / step / 1e6)
    assert run.fraction_of_limit == max(run.decode_fractions.bandwidth, run.decode_fractions.int8)
    read, made = 500.0 + streams * 32, streams * (32 * 80 + 30)
    assert run.prefill_fractions.bandwidth == pytest.approx(read / prefill / 1e5)
    assert run.prefill_fractions.int8 == pytest.approx(made / prefill / 1e6)
    assert run.ttft_ms == pytest.approx(dict.fromkeys(("p50", "p90", "p99"), prefill * 1e3))
    assert run.tpot_ms == pytest.approx(dict.fromkeys(("p50", "p90", "p99"), step * 1e3))
    assert run.itl_ms == pytest.approx(run.tpot_ms)


def test_one_output_token_has_no_time_per_further_token() -> None:
    executor = TimedExecutor()
    run = measure(
        executor, 2, prompt_tokens=4, output_tokens=1, yardstick=YARDSTICK, clock=executor.clock
    )
    assert run.decode_tokens_per_second == run.fraction_of_limit == 0.0
    assert run.prefill_fractions.int8 > 0
    assert run.tpot_ms["p99"] == 0.0


def test_requests_that_cannot_fit_are_refused() -> None:
    with pytest.raises(RequestError, match="512"):
        measure(TimedExecutor(), 1, prompt_tokens=512, output_tokens=9)


def test_tokens_that_come_while_others_are_prefilled_count_there() -> None:
    """Prompts of 200 in steps of 256: the first request decodes beside the second's rest."""
    executor = TimedExecutor()
    run = measure(
        executor,
        2,
        prompt_tokens=200,
        output_tokens=4,
        yardstick=Yardstick(token_operations=1.0, row_operations=10.0, int8_operations=1.0),
        clock=executor.clock,
    )
    seconds = 400 / run.prefill_tokens_per_second
    # 400 of the prompts and one answer's first token, which was computed too; three rows of logits.
    assert run.prefill_fractions.int8 * seconds == pytest.approx(400 + 1 + 3 * 10)


def test_without_a_yardstick_there_are_no_fractions() -> None:
    executor = TimedExecutor()
    run = measure(executor, 1, prompt_tokens=4, output_tokens=3, clock=executor.clock)
    assert run.fraction_of_limit == run.prefill_fractions.bandwidth == 0.0


def test_resident_bytes_sees_new_memory() -> None:
    before = resident_bytes()
    held = np.ones(8 << 20, np.int64)
    assert resident_bytes() - before > held.nbytes // 2
