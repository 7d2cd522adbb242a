"""coldpress, through its engine: python -m benchmarks.speed.coldpress_cells MODEL [THREADS]"""

import json
import sys
from pathlib import Path

from coldpress.loading import Machine, open_artifact, open_executor
from runtime.bench import Run, measure
from runtime.engine.batch import Executor

STREAMS = {1: 64, 4: 32, 8: 32, 16: 32}
"""Tokens that each of so many streams makes."""
REQUESTS, RUNNING = 32, 32
CONTEXT = 128


def run(executor: Executor, streams: int, prompt: int, output: int, rounds: int = 2) -> list[Run]:
    return [
        measure(
            executor,
            streams,
            prompt_tokens=prompt,
            output_tokens=output,
            decode_limit=1.0,
            max_step_tokens=512,
        )
        for _ in range(rounds)
    ]


def cells(executor: Executor) -> dict[str, float]:
    run(executor, 1, CONTEXT, 2, rounds=1)
    found = {
        "prefill_512": max(
            each.prefill_tokens_per_second for each in run(executor, 1, 512, 2, rounds=3)
        )
    }
    for streams, output in STREAMS.items():
        runs = run(executor, streams, CONTEXT, output)
        found[f"decode_{streams}"] = max(each.decode_tokens_per_second for each in runs)
    (all_at_once,) = run(executor, REQUESTS, CONTEXT, CONTEXT, rounds=1)
    found["in_flight"] = all_at_once.total_tokens_per_second / 2
    return found


def main(model: str, threads: int) -> None:
    opened, _ = open_artifact(Path(model))
    machine = Machine(threads=threads)
    executor = open_executor(opened, machine, tokens=CONTEXT + 512, sequences=REQUESTS)
    print(json.dumps({"model": model, **cells(executor)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 2)
