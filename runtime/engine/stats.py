"""What the engine counts."""

from dataclasses import dataclass, field, replace
from math import inf
from typing import get_args

from runtime.engine.constraint import GRAMMAR_SECONDS
from runtime.engine.request import FinishReason


def _no_ends() -> dict[FinishReason, int]:
    return dict.fromkeys(get_args(FinishReason), 0)


def _no_times() -> dict[str, int]:
    return dict.fromkeys(map(str, (*GRAMMAR_SECONDS, inf)), 0)


@dataclass
class Counters:
    """Since the engine was made; none ever falls.

    prompt_tokens: of prompts that were computed to their end, each counted once.
    prefix_cache_queries: those of them that the prefix cache was asked for, in tokens;
        prefix_cache_hits: those that it had.
    drafts: times that the next tokens of an answer were guessed; draft_tokens: the guesses;
        accepted_draft_tokens: those that came true.
    corrupted_requests: ended by an error, because the model produced what are no finite numbers.
    grammar_hits, grammar_misses: constraints that were compiled already when a request came with
        them, and those that were not; grammar_refusals: those of them that could not be;
        grammar_times: how many of them took at most so many seconds and more than the next less,
        by the limit, "inf" for all longer; grammar_seconds: of all together.
    grammar_failures: constrained answers that ended with an error.
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
    grammar_hits: int = 0
    grammar_misses: int = 0
    grammar_refusals: int = 0
    grammar_failures: int = 0
    grammar_seconds: float = 0.0
    grammar_times: dict[str, int] = field(default_factory=_no_times)
    computed_tokens: int = 0
    finished: dict[FinishReason, int] = field(default_factory=_no_ends)

    def copy(self) -> "Counters":
        return replace(self, finished=dict(self.finished), grammar_times=dict(self.grammar_times))

    def note_prompt(self, num_tokens: int, num_cached: int | None) -> None:
        """A prompt is computed to its end. num_cached: None where nobody was asked."""
        self.prompt_tokens += num_tokens
        if num_cached is not None:
            self.prefix_cache_queries += num_tokens
            self.prefix_cache_hits += num_cached

    def note_compiled(self, seconds: float, *, refused: bool) -> None:
        """A constraint was compiled, or could not be."""
        self.grammar_misses += 1
        self.grammar_refusals += refused
        self.grammar_seconds += seconds
        limit = next((limit for limit in GRAMMAR_SECONDS if seconds <= limit), inf)
        self.grammar_times[str(limit)] += 1


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
    pages_written: int = 0
    """Those that take memory: they were in use, and what they hold was not given up since."""
    expected_wait_seconds: float = 0.0
    """Of a request that comes now."""
    worker_restarts: int = 0
    """Processes of the engine that took the place of one that had ended."""
