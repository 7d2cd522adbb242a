"""What is timed, the same for all contenders. NumPy alone: it runs in every tool's environment."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

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

    run(2, CONTEXT, 4)
    prompts = [run(1, PROMPT, 1) for _ in range(ROUNDS + 1)]
    found = {f"prefill_{PROMPT}": max(PROMPT / (each.end - each.start) for each in prompts)}
    for streams, output in STREAMS.items():
        runs = [run(streams, CONTEXT, 1 + output) for _ in range(ROUNDS)]
        found[f"decode_{streams}"] = max(each.decode_rate for each in runs)
    together = run(REQUESTS, CONTEXT, CONTEXT)
    found["in_flight"] = REQUESTS * CONTEXT / (together.end - together.start)
    return found
