"""Benchmark of what lies on disk: one executor, warmed up, then every concurrency in turn."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from coldpress.loading import (
    DEFAULT_MACHINE,
    Machine,
    OnNote,
    open_artifact,
    open_executor,
    payload_bytes,
)
from quant.format.errors import InputError

if TYPE_CHECKING:
    from compile.model import Model
    from runtime.loading import LoadedExecutor
    from runtime.yardstick import Yardstick


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
    from runtime.bench import measure, resident_bytes
    from runtime.executors.cpu import CpuExecutor
    from runtime.loading import resolve_backend
    from runtime.machine import available_threads
    from runtime.yardstick import int8_operations_per_second, read_bytes_per_second

    threads = machine.threads or available_threads()
    model, _ = open_artifact(artifact, on_note)
    longest = prompt_tokens + output_tokens
    limit = model.program.sizes.max_positions
    if longest > limit:
        raise InputError(
            f"{prompt_tokens} + {output_tokens} tokens exceed the model's context of {limit}; "
            "lower --prompt-tokens or --output-tokens"
        )
    backend = resolve_backend(model, machine.backend)
    if profile and backend != "cpu":
        raise InputError("only the cpu backend times its ops; leave --profile out")
    rates = (read_bytes_per_second(threads), int8_operations_per_second(threads))
    weight_bytes = payload_bytes(artifact)
    executor = open_executor(
        model, replace(machine, threads=threads), tokens=longest, sequences=max(concurrency)
    )
    timed = executor if profile and isinstance(executor, CpuExecutor) else None
    runs, profiles = [], []
    try:
        measure(executor, 1, prompt_tokens=8, output_tokens=2)
        yardstick = _yardstick(model, executor, backend, *rates)
        for index, streams in enumerate(concurrency):
            if timed is not None:
                timed.profile(True)
            run = measure(
                executor,
                streams,
                prompt_tokens=prompt_tokens,
                output_tokens=output_tokens,
                yardstick=yardstick,
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
            "read_bytes_per_second": rates[0],
            "int8_operations_per_second": rates[1],
            "operations_per_token": yardstick.token_operations,
            "operations_per_row": yardstick.row_operations,
            "weight_bytes": weight_bytes,
            "held_bytes": held,
            "decode_steps_per_second": rates[0] / weight_bytes,
        },
        "runs": runs,
        "resident_bytes": resident,
        **({"profile": profiles} if profile else {}),
    }


def _yardstick(
    model: "Model", executor: "LoadedExecutor", backend: str, read_bytes: float, int8: float
) -> "Yardstick":
    """Of the processor, where that is what computes."""
    from runtime.yardstick import NOTHING, make_yardstick

    if backend not in ("cpu", "torch", "onnx"):
        return NOTHING
    positions = executor.num_pages * executor.page_size
    cache = getattr(executor, "cache_bytes", 0) / positions
    return make_yardstick(model, executor.weight_bytes, cache, read_bytes, int8)
