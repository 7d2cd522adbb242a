"""The engine's limits and modes, as plain data that a worker process can be sent."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """ValueError, one sentence naming the field, for a value that no engine can work with.

    max_step_tokens: tokens computed in one step at most, of prompts and answers together.
    max_running: requests that share steps at most.
    max_waiting: requests in the queue at most; further ones are refused.
    max_prompt_logit_rows: rows of logits that one step computes at most for the probabilities of
        prompts; a row takes four bytes for each token of the vocabulary.
    prefix_cache: keep the pages of requests that have ended, to be found by later ones that begin
        with the same tokens and have the same `cache_salt`.
    """

    max_step_tokens: int = 256
    max_running: int = 16
    max_waiting: int = 256
    max_prompt_logit_rows: int = 64
    prefix_cache: bool = True

    def __post_init__(self) -> None:
        for name in ("max_step_tokens", "max_running", "max_waiting", "max_prompt_logit_rows"):
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
