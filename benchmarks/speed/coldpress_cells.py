"""coldpress, through its engine: python -m benchmarks.speed.coldpress_cells MODEL [--threads N]"""

import argparse
import json
from pathlib import Path

from benchmarks.speed.cells import (
    CONTEXT,
    LONGEST,
    PROMPT,
    REQUESTS,
    ROUNDS,
    STEP_TOKENS,
    STREAMS,
    wanted_cells,
)
from coldpress.loading import Machine, open_artifact, open_executor
from runtime.bench import Run, measure
from runtime.engine.batch import Executor


def run(executor: Executor, streams: int, prompt: int, output: int, rounds: int = 1) -> list[Run]:
    return [
        measure(
            executor,
            streams,
            prompt_tokens=prompt,
            output_tokens=output,
            max_step_tokens=STEP_TOKENS,
        )
        for _ in range(rounds)
    ]


def cells(executor: Executor) -> dict[str, float]:
    def prefill() -> float:
        prompts = run(executor, 1, PROMPT, 1, rounds=ROUNDS + 1)
        return max(each.prefill_tokens_per_second for each in prompts)

    def decode(streams: int) -> float:
        runs = run(executor, streams, CONTEXT, 1 + STREAMS[streams], rounds=ROUNDS)
        return max(each.decode_tokens_per_second for each in runs)

    def in_flight() -> float:
        (together,) = run(executor, REQUESTS, CONTEXT, CONTEXT)
        return together.total_tokens_per_second / 2

    run(executor, 2, CONTEXT, 4)
    return wanted_cells(STREAMS, prefill, decode, in_flight)


def main(model: Path, machine: Machine) -> None:
    opened, _ = open_artifact(model)
    executor = open_executor(opened, machine, tokens=LONGEST, sequences=REQUESTS)
    print(json.dumps({"model": str(model), **cells(executor)}))


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kv-cache-type", default="auto")
    asked = parser.parse_args()
    main(asked.model, Machine(threads=asked.threads, kv_cache_type=asked.kv_cache_type))
