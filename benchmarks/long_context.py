"""What a token costs behind a long context, beside the bytes that its attention reads.

`python -m benchmarks.long_context MODEL [--contexts 128,2048,8000] [--kv-cache-type int8] [--json]`

The cache is filled once; then one stream decodes its next token at each of the contexts in turn,
round after round, so that a machine that drifts does so under all of them. Attention may cost what
its bytes take at the speed at which this machine reads memory, which is measured in the same run.
Layers with a sliding window read less than is counted here.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np

from coldpress.loading import PAGE_SIZE, Machine, open_artifact, open_executor
from compile.program import Program
from runtime.engine.batch import Executor, StepBatch
from runtime.kv_cache import kv_bytes_per_page, resolve_kv_cache_type
from runtime.machine import available_threads
from runtime.yardstick import read_bytes_per_second

CHUNK = 512
ROUNDS, STEPS = 15, 4


@dataclass(frozen=True)
class Row:
    """milliseconds: of one token, the median over rounds. more: than at the shortest context.
    allowed: what reading the further bytes of keys and values takes."""

    context: int
    milliseconds: float
    more: float
    allowed: float
    attention_bytes: int


def tokens_at(first: int, count: int, table: np.ndarray) -> StepBatch:
    """`count` tokens from position `first` on, with the logits of the last."""
    positions = np.arange(first, first + count, dtype=np.int32)
    starts = np.array([0, count], np.int32)
    return StepBatch(positions % 97, positions, starts, table, np.array([count - 1], np.int32))


def fill(executor: Executor, tokens: int, table: np.ndarray) -> None:
    for start in range(0, tokens, CHUNK):
        executor.step(tokens_at(start, min(CHUNK, tokens - start), table))


def seconds_at(executor: Executor, contexts: Sequence[int], table: np.ndarray) -> list[float]:
    """Of one token behind each of so many."""
    rounds: list[list[float]] = [[] for _ in contexts]
    for _ in range(ROUNDS):
        for times, context in zip(rounds, contexts, strict=True):
            batch = tokens_at(context, 1, table)
            start = time.perf_counter()
            for _ in range(STEPS):
                executor.step(batch)
            times.append((time.perf_counter() - start) / STEPS)
    return [median(times) for times in rounds]


def bytes_per_token(program: Program, machine: Machine) -> float:
    """Bytes that a token's keys and values take in all layers."""
    number = resolve_kv_cache_type(machine.kv_cache_type, "cpu", machine.exact)
    return kv_bytes_per_page(program, PAGE_SIZE, number) / PAGE_SIZE


def rows_of(
    contexts: Sequence[int], seconds: Sequence[float], each: float, bandwidth: float
) -> list[Row]:
    """each: bytes of keys and values of one token; bandwidth: bytes a second."""
    return [
        Row(
            context,
            1e3 * time_,
            1e3 * (time_ - seconds[0]),
            1e3 * each * (context - contexts[0]) / bandwidth,
            int(each * context),
        )
        for context, time_ in zip(contexts, seconds, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--contexts", default="128,2048,8000")
    parser.add_argument("--kv-cache-type", default="auto")
    parser.add_argument("--threads", type=int, default=available_threads())
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    contexts = sorted(int(part) for part in asked.contexts.split(","))
    machine = Machine(threads=asked.threads, kv_cache_type=asked.kv_cache_type)
    model, _ = open_artifact(asked.model)
    bandwidth = read_bytes_per_second(asked.threads)
    executor = open_executor(model, machine, tokens=contexts[-1] + 1)
    table = np.arange(1, executor.num_pages, dtype=np.int32)[None]
    fill(executor, contexts[-1], table)
    seconds = seconds_at(executor, contexts, table)
    rows = rows_of(contexts, seconds, bytes_per_token(model.program, machine), bandwidth)
    if asked.json:
        print(json.dumps({"bandwidth": bandwidth, "rows": [asdict(row) for row in rows]}))
        return
    print(f"{bandwidth / 1e9:.1f} GB/s, {asked.threads} threads")
    for row in rows:
        print(
            f"{row.context:6d} tokens: {row.milliseconds:6.2f} ms, {row.more:6.2f} more; "
            f"{row.attention_bytes / 1e6:6.1f} MB, which allow {row.allowed:.2f} more"
        )


if __name__ == "__main__":
    main()
