"""Whole models of a real shape with random weights, through the executor that serves them."""

import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from benchmarks.on_gpu.limits import Limits
from benchmarks.on_gpu.table import Row
from compile.families import build_program
from compile.model import Model
from compile.program import Program
from quant.format.scheme import (
    ActivationScheme,
    CodebookScheme,
    FloatScheme,
    IntScheme,
    PerChannel,
    PerGroup,
    Scheme,
)
from quant.format.tensor import QuantizedTensor, Weight
from runtime.engine.batch import StepBatch
from runtime.executors.cuda import CudaExecutor, CudaRecorder
from runtime.executors.cuda.memory import weights_on_device

SHAPES: Mapping[str, Mapping[str, int]] = {
    "1.1B": {
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 22,
        "num_attention_heads": 32, "num_key_value_heads": 4, "vocab_size": 32000,
    },
    "8B": {
        "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    },
}  # fmt: skip
SCHEMES: Mapping[str, Scheme] = {
    "w4a16": IntScheme(4, True, PerGroup(128)),
    "fp8": CodebookScheme("e4m3", PerChannel(), activation=ActivationScheme("e4m3")),
    "bfloat16": FloatScheme("bfloat16"),
}
PAGE_SIZE = 32
CONTEXT = 512
PROMPT = 2048
DECODE_STEPS = 32


def config_of(shape: Mapping[str, int]) -> dict[str, Any]:
    """A llama config of this shape."""
    return {
        "model_type": "llama",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "rope_theta": 500000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
        **shape,
    }


@dataclass(frozen=True)
class RandomWeights:
    """A WeightSource that makes each tensor up when it is asked for it."""

    program: Program
    schemes: Mapping[str, Scheme]

    def names(self) -> Collection[str]:
        return self.program.weights()

    def shape(self, name: str) -> tuple[int, ...]:
        return self.program.weights()[name]

    def scheme(self, name: str) -> Scheme:
        return self.schemes.get(name, FloatScheme("bfloat16"))

    def load(self, name: str) -> Weight:
        shape, scheme = self.shape(name), self.scheme(name)
        random = np.random.default_rng(len(name))
        if len(shape) == 1:
            return np.ones(shape, ml_dtypes.bfloat16)
        rows, columns = shape
        size = 1 / np.sqrt(columns)
        if isinstance(scheme, FloatScheme):
            # One row after the other from a short stretch of noise: only speed matters.
            noise = random.normal(size=columns + 997).astype(np.float32) * size
            starts = np.arange(rows) % 997
            windows = np.lib.stride_tricks.sliding_window_view(noise, columns)
            return windows[starts].astype(ml_dtypes.bfloat16)
        codes = random.integers(-128, 128, shape, dtype=np.int8)
        groups = scheme.groups(columns)
        scale = np.full((rows, groups), size / 4, ml_dtypes.bfloat16)
        if isinstance(scheme, CodebookScheme):
            bits = codes.view(np.uint8)
            bits[(bits & 0x7F) == 0x7F] = 0  # the two codes for NaN
            return QuantizedTensor(scheme, codes, (scale.astype(np.float32) / 50))
        return QuantizedTensor(scheme, (codes >> 4).astype(np.int8), scale)


def random_model(shape: str, scheme: str) -> Model:
    """A llama of `shape` whose linears are stored in `scheme`, head and embeddings in bfloat16."""
    config = config_of(SHAPES[shape])
    stored = SCHEMES[scheme]

    def scheme_of(name: str) -> Scheme:
        return stored if "_proj" in name else FloatScheme("bfloat16")

    program = build_program(config, scheme_of, lambda name: name == "lm_head.weight")
    schemes = {name: scheme_of(name) for name in program.weights()}
    weights = RandomWeights(program, schemes)
    return Model(Path(shape), "huggingface", program, weights, config, None, None)


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
