"""Whole models of a real shape with random weights, through the executor that serves them."""

import time

import numpy as np

from benchmarks.on_gpu.limits import Limits
from benchmarks.on_gpu.made_up import SCHEMES, random_model
from benchmarks.on_gpu.table import Row
from compile.model import Model
from runtime.engine.batch import StepBatch
from runtime.executors.cuda import CudaExecutor, CudaRecorder
from runtime.executors.cuda.memory import weights_on_device

PAGE_SIZE = 32
CONTEXT = 512
PROMPT = 2048
DECODE_STEPS = 32


def model_rows(shape: str, limits: Limits) -> list[Row]:
    """Decode and prefill, with every scheme."""
    rows: list[Row] = []
    for scheme in SCHEMES:
        model = random_model(shape, scheme)
        streams = (1, 64)
        pages = 1 + max(streams) * -(-(CONTEXT + DECODE_STEPS + 1) // PAGE_SIZE)
        pages = max(pages, 2 + PROMPT // PAGE_SIZE)
        executor = CudaExecutor(
            model, num_pages=pages, page_size=PAGE_SIZE, recorder=CudaRecorder()
        )
        try:
            for count in streams:
                rows.append(_decode(shape, scheme, model, executor, limits, count))
            rows.append(_prefill(shape, scheme, model, executor, limits))
        finally:
            executor.close()
    return rows


def _decode(
    shape: str, scheme: str, model: Model, executor: CudaExecutor, limits: Limits, streams: int
) -> Row:
    """Tokens per second of `streams` sequences behind 512 tokens, host and all."""
    each = -(-(CONTEXT + DECODE_STEPS + 1) // PAGE_SIZE)
    table = 1 + np.arange(streams * each, dtype=np.int32).reshape(streams, each)
    starts = np.arange(streams + 1, dtype=np.int32)

    def step(position: int) -> None:
        tokens = np.full(streams, position % 1000 + 5, np.int32)
        positions = np.full(streams, position, np.int32)
        executor.step(StepBatch(tokens, positions, starts, table, starts[:-1]))

    for position in range(CONTEXT - 3, CONTEXT):
        step(position)
    begin = time.perf_counter()
    for position in range(CONTEXT, CONTEXT + DECODE_STEPS):
        step(position)
    seconds = (time.perf_counter() - begin) / DECODE_STEPS
    limit = _step_limit(model, limits, scheme, streams, streams * CONTEXT)
    wanted = {1: 0.65 if scheme == "w4a16" else None, 64: 0.5}[streams]
    name = f"{shape} {scheme}, decode of {streams}"
    return Row(name, streams / seconds, "tokens/s", limit / seconds, wanted)


def _prefill(shape: str, scheme: str, model: Model, executor: CudaExecutor, limits: Limits) -> Row:
    order = np.arange(PROMPT, dtype=np.int32)
    table = 1 + np.arange(PROMPT // PAGE_SIZE, dtype=np.int32)[None]
    starts = np.array([0, PROMPT], np.int32)
    batch = StepBatch(order % 1000 + 5, order, starts, table, order[-1:])
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        executor.step(batch)
        times.append(time.perf_counter() - begin)
    seconds = sorted(times)[2]
    limit = _step_limit(model, limits, scheme, PROMPT, PROMPT)
    wanted = 0.65 if scheme == "fp8" else None
    return Row(
        f"{shape} {scheme}, prompt of {PROMPT}",
        PROMPT / seconds,
        "tokens/s",
        limit / seconds,
        wanted,
    )


def _step_limit(model: Model, limits: Limits, scheme: str, rows: int, context_tokens: int) -> float:
    """Seconds that the tighter of bandwidth and products asks for."""
    sizes = model.program.sizes
    cached = 2 * 2 * sizes.layers * sizes.kv_heads * sizes.head_dim * context_tokens
    moved = weights_on_device(model.program) + cached
    rate = limits.e4m3 if scheme == "fp8" and limits.e4m3 else limits.bfloat16
    linears = sum(
        rows * op.in_features * op.out_features
        for op in model.program.projections()
        if hasattr(op, "out_features")
    )
    return max(moved / limits.bandwidth, 2.0 * linears / rate)
