"""What is timed, the same for all contenders. NumPy alone: it runs in every tool's environment."""

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

STREAMS = {1: 64, 4: 32, 8: 32, 16: 32}
"""Tokens that each of so many streams makes behind its first."""
CONTEXT, PROMPT = 128, 512
REQUESTS = 32
"""Of CONTEXT tokens in and out, which start together."""
LONGEST = CONTEXT + PROMPT
"""Positions of any sequence here, and to spare."""
STEP_TOKENS = 512
"""The most tokens of one step, for those who ask."""
ROUNDS = 2
"""The best of so many is what counts."""


def names(streams: Iterable[int]) -> tuple[str, ...]:
    """Of all cells that these numbers of streams have."""
    return (f"prefill_{PROMPT}", *(f"decode_{number}" for number in streams), "in_flight")


CELLS = names(STREAMS)
CELLS_VARIABLE = "COMPARED_CELLS"
"""Of the environment: which of CELLS are timed, with commas between; all where it is not set."""


def is_wanted(cell: str) -> bool:
    asked = os.environ.get(CELLS_VARIABLE)
    return not asked or cell in asked.split(",")


@dataclass
class Times:
    """Seconds on one clock: when all requests were handed in, and when each one's tokens came."""

    start: float
    tokens: list[list[float]] = field(default_factory=list)

    @property
    def prefilled(self) -> float:
        """When the last request had its first token."""
        return max(times[0] for times in self.tokens)

    @property
    def end(self) -> float:
        return max(times[-1] for times in self.tokens)

    @property
    def decode_rate(self) -> float:
        """Tokens per second of those that came when every request had its first."""
        behind = [time for times in self.tokens for time in times if time > self.prefilled]
        return len(behind) / (self.end - self.prefilled)


Generate = Callable[[Sequence[Sequence[int]], int], Times]
"""Runs these prompts together, greedily, to so many tokens each."""


def measure(generate: Generate, vocab_size: int) -> dict[str, float]:
    """The cells of a contender that has an engine of its own."""
    random = np.random.default_rng(0)

    def run(streams: int, prompt: int, output: int) -> Times:
        prompts = random.integers(100, vocab_size - 1, (streams, prompt)).tolist()
        return generate(prompts, output)

    def prefill() -> float:
        prompts = [run(1, PROMPT, 1) for _ in range(ROUNDS + 1)]
        return max(PROMPT / (each.end - each.start) for each in prompts)

    def decode(streams: int) -> float:
        return max(run(streams, CONTEXT, 1 + STREAMS[streams]).decode_rate for _ in range(ROUNDS))

    def in_flight() -> float:
        together = run(REQUESTS, CONTEXT, CONTEXT)
        return REQUESTS * CONTEXT / (together.end - together.start)

    run(2, CONTEXT, 4)
    return wanted_cells(STREAMS, prefill, decode, in_flight)


def wanted_cells(
    streams: Iterable[int],
    prefill: Callable[[], float],
    decode: Callable[[int], float],
    in_flight: Callable[[], float],
) -> dict[str, float]:
    """Tokens per second of each cell that is wanted. decode: of one of the numbers of streams."""
    streams = tuple(streams)
    times: tuple[Callable[[], float], ...]
    times = (prefill, *(partial(decode, number) for number in streams), in_flight)
    timed = zip(names(streams), times, strict=True)
    return {cell: time() for cell, time in timed if is_wanted(cell)}
