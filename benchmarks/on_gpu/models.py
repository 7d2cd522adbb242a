"""Whole models of a real shape with random weights, through the executor that serves them."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np

from benchmarks.on_gpu.clock import DEVICE
from benchmarks.on_gpu.limits import Limits
from benchmarks.on_gpu.made_up import random_model
from benchmarks.on_gpu.sizes import SIZES
from benchmarks.on_gpu.table import Cell, Row
from compile.model import Model
from compile.program import Embed, Linear
from runtime.engine.batch import Follows, PlainDraw, StepBatch
from runtime.executors.cuda import CudaExecutor, CudaRecorder
from runtime.executors.cuda.graphs import EagerRecorder
from runtime.executors.cuda.staging import InFlight

PAGE_SIZE = 32
CONTEXT, PROMPT, STEPS = SIZES.context, SIZES.prompt, SIZES.steps
MANY = SIZES.streams[-1]
PAGES_OF_STREAM = -(-(CONTEXT + STEPS + 1) // PAGE_SIZE)
PREFILLS = 6
GREEDY = PlainDraw(0.0, 0, 1.0, 0.0, 0.5)


def model_cells(shape: str, scheme: str, limits: Limits) -> Iterator[Cell]:
    """Loading; decode of 1 and of 64 streams, and a prompt."""
    begin = time.perf_counter()
    model = random_model(shape, scheme)
    pages = max(1 + MANY * PAGES_OF_STREAM, 2 + PROMPT // PAGE_SIZE)
    executor = CudaExecutor(
        model,
        num_pages=pages,
        page_size=PAGE_SIZE,
        device=DEVICE,
        recorder=CudaRecorder() if DEVICE == "cuda" else EagerRecorder(),
    )
    seconds = time.perf_counter() - begin
    timing = Timing(shape, scheme, model, executor, limits)
    try:
        for streams in SIZES.streams:
            name = f"{shape} {scheme}, decode of {streams}"
            yield name, partial(_decode, name, timing, streams)
        name = f"{shape} {scheme}, prompt of {PROMPT}"
        yield name, partial(_prefill, name, timing)
        name = f"{shape} {scheme}, made up, loaded and packed"
        yield name, lambda: [Row(name, seconds, "s")]
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
    table = 1 + np.arange(streams * PAGES_OF_STREAM, dtype=np.int32).reshape(streams, -1)
    starts = np.arange(streams + 1, dtype=np.int32)
    draws = [GREEDY] * streams

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
    seconds = run(CONTEXT, STEPS - 1) / (STEPS - 1)
    limit = _step_limit(timing, streams, streams * CONTEXT)
    wanted = 0.5 if streams > 1 else 0.65 if timing.scheme == "w4a16" else None
    return [Row(name, streams / seconds, "tokens/s", limit / seconds, wanted)]


def _prefill(name: str, timing: Timing) -> list[Row]:
    order = np.arange(PROMPT, dtype=np.int32)
    table = 1 + np.arange(-(-PROMPT // PAGE_SIZE), dtype=np.int32)[None]
    starts = np.array([0, PROMPT], np.int32)
    tokens = (order % (timing.executor.vocab_size // 2) + 5).astype(np.int32)
    batch = StepBatch(tokens, order, starts, table, order[-1:])
    times = []
    for _ in range(PREFILLS if DEVICE == "cuda" else 2):
        begin = time.perf_counter()
        timing.executor.choose(batch, [GREEDY])
        times.append(time.perf_counter() - begin)
    # The first one compiles.
    seconds = sorted(times[1:])[(len(times) - 1) // 2]
    limit = _step_limit(timing, PROMPT, PROMPT)
    wanted = 0.65 if timing.scheme == "fp8" else None
    return [Row(name, PROMPT / seconds, "tokens/s", limit / seconds, wanted)]


def _step_limit(timing: Timing, rows: int, context_tokens: int) -> float:
    """Seconds that the tighter of bandwidth and products asks for."""
    program, limits = timing.model.program, timing.limits
    sizes = program.sizes
    cached = 2 * 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * context_tokens
    moved = bytes_of_a_step(timing.model, timing.executor.weight_bytes) + cached
    rate = limits.e4m3 if timing.scheme == "fp8" and limits.e4m3 else limits.bfloat16
    linears = sum(
        rows * op.in_features * op.out_features
        for op in program.projections()
        if isinstance(op, Linear)
    )
    return max(moved / limits.bandwidth, 2.0 * linears / rate)


def bytes_of_a_step(model: Model, weight_bytes: int) -> int:
    """Of the weights that every step reads, of `weight_bytes` in all: of a table of embeddings that
    is no head as well, a few rows."""
    program = model.program
    heads = {op.weight for op in program.projections()}
    tables = {op.weight for op in program.ops if isinstance(op, Embed)} - heads
    return weight_bytes - sum(2 * math.prod(program.weights()[name]) for name in tables)
