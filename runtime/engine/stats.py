"""What the engine counts."""

from dataclasses import dataclass, field
from typing import get_args

from runtime.engine.request import FinishReason


def _no_ends() -> dict[FinishReason, int]:
    return dict.fromkeys(get_args(FinishReason), 0)


@dataclass
class Counters:
    """Since the engine was made; none ever falls.

    prompt_tokens: of prompts that were computed to their end, each counted once.
    prefix_cache_queries: those of them that the prefix cache was asked for, in tokens;
        prefix_cache_hits: those that it had.
    drafts: times that the next tokens of an answer were guessed; draft_tokens: the guesses;
        accepted_draft_tokens: those that came true.
    corrupted_requests: ended by an error, because the model produced what are no finite numbers.
    computed_tokens: all that went through the executor, again after a preemption included.
    finished: requests that ended, by reason; with the live ones they add up to `requests`.
    """

    steps: int = 0
    failed_steps: int = 0
    preemptions: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    generated_tokens: int = 0
    corrupted_requests: int = 0
    drafts: int = 0
    draft_tokens: int = 0
    accepted_draft_tokens: int = 0
    computed_tokens: int = 0
    finished: dict[FinishReason, int] = field(default_factory=_no_ends)


@dataclass
class EngineStats(Counters):
    """A copy of the counters, with the gauges of the same moment and the limits that they
    run into. `pages_in_use` have an owner; `pages_evictable` have none, but hold what later
    requests may ask for; the rest of `pages_total`, which leaves the reserved page out, is free."""

    num_running: int = 0
    num_waiting: int = 0
    max_running: int = 0
    max_waiting: int = 0
    pages_in_use: int = 0
    pages_evictable: int = 0
    pages_total: int = 0
    expected_wait_seconds: float = 0.0
    """Of a request that comes now."""
    worker_restarts: int = 0
    """Processes of the engine that took the place of one that had ended."""
