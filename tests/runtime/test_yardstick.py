"""What steps have to do, by hand; what the machine can do, as far as counting goes."""

import pytest

from compile.program import Linear, Logits, Moe
from quant.format.scheme import IntScheme, PerGroup
from runtime.executors.cpu import CpuExecutor
from runtime.kernels.cpu._native import Probe, ThreadPool, instruction_sets
from runtime.yardstick import (
    NOTHING,
    Yardstick,
    int8_operations_per_second,
    make_yardstick,
    read_bytes_per_second,
)
from tests.tiny import tiny_model


@pytest.mark.parametrize("scheme", [None, IntScheme(4, True, PerGroup(32))])
def test_a_step_reads_all_that_is_multiplied_and_multiplies_it(scheme: IntScheme | None) -> None:
    model = tiny_model(scheme=scheme)
    executor = CpuExecutor(model, num_pages=4, page_size=16, threads=1)
    yardstick = make_yardstick(model, executor.weight_bytes, 7.0, 2.0, 3.0)
    executor.close()
    linears = [op for op in model.program.ops if isinstance(op, Linear)]
    (head,) = (op for op in model.program.ops if isinstance(op, Logits))
    per_token = sum(2 * op.in_features * op.out_features for op in linears)
    assert yardstick.token_operations == per_token
    assert yardstick.row_operations == 2 * head.in_features * head.vocab_size
    assert yardstick.expert_bytes == 0.0
    assert (yardstick.cache_bytes, yardstick.read_bytes, yardstick.int8_operations) == (7, 2, 3)
    tied = model.program.tied_embeddings
    share = yardstick.dense_bytes / executor.weight_bytes
    assert share == pytest.approx(1.0) if tied else 0.3 < share < 1.0


def test_of_a_mixture_the_chosen_experts_count() -> None:
    model = tiny_model("mixtral")
    executor = CpuExecutor(model, num_pages=4, page_size=16, threads=1)
    yardstick = make_yardstick(model, executor.weight_bytes, 0.0, 1.0, 1.0)
    executor.close()
    mixture = next(op for op in model.program.ops if isinstance(op, Moe))
    share = mixture.chosen / len(mixture.experts)
    assert yardstick.expert_share == share < 1
    one = yardstick.fractions(steps=1, tokens=1, rows=0, context=0, seconds=1.0)
    many = yardstick.fractions(steps=1, tokens=99, rows=0, context=0, seconds=1.0)
    expected = yardstick.dense_bytes + share * yardstick.expert_bytes
    assert one.bandwidth == pytest.approx(expected)
    assert many.bandwidth == pytest.approx(yardstick.dense_bytes + yardstick.expert_bytes)
    assert many.int8 == pytest.approx(99 * one.int8)


def test_fractions_are_of_the_rates() -> None:
    yardstick = Yardstick(dense_bytes=10.0, row_operations=4.0, read_bytes=100, int8_operations=50)
    found = yardstick.fractions(steps=3, tokens=6, rows=2, context=9.0, seconds=0.5)
    assert (found.bandwidth, found.int8) == (0.6, 0.32)
    assert found.limit == 0.6
    assert yardstick.fractions(steps=0, tokens=0, rows=0, context=0, seconds=0).limit == 0.0
    assert NOTHING.fractions(steps=1, tokens=1, rows=1, context=1, seconds=1).limit == 0.0


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_rates_are_what_was_done_over_the_best_time(threads: int) -> None:
    size = 3 << 18
    ticks = iter([0.0, 2.0, 2.0, 3.0])
    rate = read_bytes_per_second(threads, size, repeat=2, clock=lambda: next(ticks))
    assert rate == size
    for name in instruction_sets():
        times = iter([0.0, 2.0, 2.0, 6.0]).__next__
        found = int8_operations_per_second(threads, 100, 2, times, name)
        pool = ThreadPool(threads)
        assert found == Probe(pool, name, 1).multiply(100) / 2.0 > 0


def test_an_unknown_instruction_set_is_refused() -> None:
    with pytest.raises(ValueError, match="mmx"):
        Probe(ThreadPool(1), "mmx", 100)
