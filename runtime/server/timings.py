"""How long an answer took, in llama.cpp's `timings` object."""

import time
from typing import Any

from runtime.generation import Generation


class Timings:
    """Of one answer: call `note` when its text has come, from the first time on."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation
        self._first: float | None = None
        self._last = generation.started

    def note(self) -> None:
        self._last = time.monotonic()
        if self._first is None:
            self._first = self._last

    def as_object(self) -> dict[str, Any]:
        """Milliseconds and tokens per second. The prompt's time ends with the first token."""
        generation = self._generation
        first = self._last if self._first is None else self._first
        return {
            "cache_n": generation.num_cached_tokens,
            **_figures("prompt", generation.num_prompt_tokens, first - generation.started),
            **_figures("predicted", generation.num_answer_tokens, self._last - first),
        }


def _figures(name: str, tokens: int, seconds: float) -> dict[str, float]:
    return {
        f"{name}_n": tokens,
        f"{name}_ms": 1000 * seconds,
        f"{name}_per_token_ms": 1000 * seconds / max(1, tokens),
        f"{name}_per_second": tokens / seconds if seconds > 0 else 0.0,
    }
