"""Benchmark of what lies on disk: one executor, warmed up, then every concurrency in turn."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from coldpress.loading import (
    DEFAULT_MACHINE,
    Machine,
    OnNote,
    open_artifact,
    open_executor,
    payload_bytes,
)
from quant.format.errors import InputError


def bench(
    artifact: Path,
    *,
    concurrency: Sequence[int] = (1, 4, 16),
    prompt_tokens: int = 128,
    output_tokens: int = 64,
    rounds: int = 1,
    profile: bool = False,
    machine: Machine = DEFAULT_MACHINE,
    on_progress: Callable[[int, int, str], None] | None = None,
    on_note: OnNote | None = None,
) -> dict[str, Any]:
    """The JSON of `coldpress bench`, its runs still as dataclasses.

    profile: time every op as well; "profile" then lists where the time went, a list for each
    concurrency. Raises InputError when prompt and output do not fit the model's context, and for a
    profile of an executor that has none.
    """
    from runtime.bench import measure, read_bytes_per_second, resident_bytes
    from runtime.executors.cpu import CpuExecutor
    from runtime.loading import resolve_backend
    from runtime.machine import available_threads

    threads = machine.threads or available_threads()
    model, _ = open_artifact(artifact, on_note)
    longest = prompt_tokens + output_tokens
    limit = model.program.sizes.max_positions
    if longest > limit:
        raise InputError(
            f"{prompt_tokens} + {output_tokens} tokens exceed the model's context of {limit}; "
            "lower --prompt-tokens or --output-tokens"
        )
    if profile and resolve_backend(model, machine.backend) != "cpu":
        raise InputError("only the cpu backend times its ops; leave --profile out")
    bandwidth = read_bytes_per_second(threads)
    weight_bytes = payload_bytes(artifact)
    executor = open_executor(
        model, replace(machine, threads=threads), tokens=longest, sequences=max(concurrency)
    )
    timed = executor if profile and isinstance(executor, CpuExecutor) else None
    runs, profiles = [], []
    try:
        measure(executor, 1, prompt_tokens=8, output_tokens=2, decode_limit=1.0)
        for index, streams in enumerate(concurrency):
            if timed is not None:
                timed.profile(True)
            run = measure(
                executor,
                streams,
                prompt_tokens=prompt_tokens,
                output_tokens=output_tokens,
                decode_limit=bandwidth / weight_bytes,
                rounds=rounds,
            )
            runs.append(run)
            if timed is not None:
                profiles.append(timed.timings())
            if on_progress is not None:
                on_progress(index + 1, len(concurrency), f"{streams} stream(s)")
        resident = resident_bytes()
        held: int = executor.weight_bytes
    finally:
        executor.close()
    return {
        "model": str(artifact),
        "threads": threads,
        "limits": {
            "read_bytes_per_second": bandwidth,
            "weight_bytes": weight_bytes,
            "held_bytes": held,
            "decode_steps_per_second": bandwidth / weight_bytes,
        },
        "runs": runs,
        "resident_bytes": resident,
        **({"profile": profiles} if profile else {}),
    }
