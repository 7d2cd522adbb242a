"""Whole models of a real shape with random weights, through the executor that serves them."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.on_gpu.limits import Limits
from benchmarks.on_gpu.made_up import random_model
from benchmarks.on_gpu.table import Cell, Row
from compile.model import Model
from compile.program import Linear
from runtime.engine.batch import Follows, PlainDraw, StepBatch
from runtime.executors.cuda import CudaExecutor, CudaRecorder
from runtime.executors.cuda.memory import weights_on_device
from runtime.executors.cuda.staging import InFlight

PAGE_SIZE = 32
CONTEXT = 512
PROMPT = 2048
DECODE_STEPS = 32
MANY = 64


def model_cells(shape: str, scheme: str, limits: Limits) -> Iterator[Cell]:
    """Decode of 1 and of 64 streams, and a prompt."""
    model = random_model(shape, scheme)
    pages = 1 + MANY * -(-(CONTEXT + DECODE_STEPS + 1) // PAGE_SIZE)
    executor = CudaExecutor(
        model, num_pages=max(pages, 2 + PROMPT // PAGE_SIZE), page_size=PAGE_SIZE,
        recorder=CudaRecorder(),
    )  # fmt: skip
    timing = Timing(shape, scheme, model, executor, limits)
    try:
        for streams in (1, MANY):
            name = f"{shape} {scheme}, decode of {streams}"
            yield name, partial(_decode, name, timing, streams)
        name = f"{shape} {scheme}, prompt of {PROMPT}"
        yield name, partial(_prefill, name, timing)
    finally:
        executor.close()


@dataclass(frozen=True, eq=False)
class Timing:
    """What is timed."""

    shape: str
    scheme: str
    model: Model
    executor: CudaExecutor
    limits: Limits


def _decode(name: str, timing: Timing, streams: int) -> list[Row]:
    """Tokens per second of `streams` sequences behind 512 tokens, as the engine asks for them: the
    next step begins before the tokens of this one are read. Compiling and recording come before."""
    each = -(-(CONTEXT + DECODE_STEPS + 1) // PAGE_SIZE)
    table = 1 + np.arange(streams * each, dtype=np.int32).reshape(streams, each)
    starts = np.arange(streams + 1, dtype=np.int32)
    draws = [PlainDraw(0.0, 0, 1.0, 0.0, 0.5)] * streams

    def begin(position: int, after: InFlight | None) -> InFlight:
        tokens = np.full(streams, 0 if after else 5, np.int32)
        positions = np.full(streams, position, np.int32)
        batch = StepBatch(tokens, positions, starts, table, starts[:-1])
        follows = None if after is None else Follows(after, starts[:-1])
        return timing.executor.begin(batch, draws, follows)

    def run(first: int, count: int) -> float:
        flight = begin(first, None)
        clock = time.perf_counter()
        for position in range(first + 1, first + count + 1):
            behind = begin(position, flight)
            flight.tokens()
            flight = behind
        flight.tokens()
        return time.perf_counter() - clock

    run(CONTEXT - 8, 4)
    seconds = run(CONTEXT, DECODE_STEPS - 1) / (DECODE_STEPS - 1)
    limit = _step_limit(timing, streams, streams * CONTEXT)
    wanted = {1: 0.65 if timing.scheme == "w4a16" else None}.get(streams, 0.5)
    return [Row(name, streams / seconds, "tokens/s", limit / seconds, wanted)]


def _prefill(name: str, timing: Timing) -> list[Row]:
    order = np.arange(PROMPT, dtype=np.int32)
    table = 1 + np.arange(PROMPT // PAGE_SIZE, dtype=np.int32)[None]
    starts = np.array([0, PROMPT], np.int32)
    batch = StepBatch(order % 1000 + 5, order, starts, table, order[-1:])
    times = []
    for _ in range(6):
        begin = time.perf_counter()
        timing.executor.choose(batch, [PlainDraw(0.0, 0, 1.0, 0.0, 0.5)])
        times.append(time.perf_counter() - begin)
    seconds = sorted(times[1:])[2]
    limit = _step_limit(timing, PROMPT, PROMPT)
    wanted = 0.65 if timing.scheme == "fp8" else None
    return [Row(name, PROMPT / seconds, "tokens/s", limit / seconds, wanted)]


def _step_limit(timing: Timing, rows: int, context_tokens: int) -> float:
    """Seconds that the tighter of bandwidth and products asks for."""
    program, limits = timing.model.program, timing.limits
    sizes = program.sizes
    cached = 2 * 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * context_tokens
    moved = weights_on_device(program) + cached
    rate = limits.e4m3 if timing.scheme == "fp8" and limits.e4m3 else limits.bfloat16
    linears = sum(
        rows * op.in_features * op.out_features
        for op in program.projections()
        if isinstance(op, Linear)
    )
    return max(moved / limits.bandwidth, 2.0 * linears / rate)
