"""The engine's limits and modes, as plain data that a worker process can be sent."""

from dataclasses import dataclass
from typing import Literal, get_args

QueueOrder = Literal["arrival", "prefix"]

_COUNTS = (
    "max_step_tokens",
    "max_running",
    "max_waiting",
    "max_extra_logit_rows",
    "max_draft_tokens",
)


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """ValueError, one sentence naming the field, for a value that no engine can work with.

    max_step_tokens: tokens computed in one step at most, of prompts and answers together.
    max_running: requests that share steps at most.
    max_waiting: requests in the queue at most; further ones are refused.
    max_extra_logit_rows: rows of logits that one step computes at most beside one for each answer:
        for the probabilities of a prompt's own tokens, or to check guesses. A row takes four bytes
        for each token of the vocabulary.
    prefix_cache: keep the pages of requests that have ended, to be found by later ones that begin
        with the same tokens and have the same `cache_salt`.
    reserve_answers: a request is let in only when there are pages for its longest answer, so that
        none is ever preempted; else as soon as there are pages for its prompt.
    queue_order: "arrival", or "prefix": of those with equal priority, first who has the most
        computed already. Nobody is overtaken by more than 8 others.
    target_step_seconds: steps that answers wait for are to take no longer: prompts get fewer
        tokens of such a step, but 32 at least. None: they get what there is.
    prompt_lookup: guess the next tokens of an answer where its last ones were there before, while
        that pays; text and seeds mean the same with and without.
    draft_model: path of a smaller model with the same vocabulary, which guesses as well. Whoever
        opens the model opens it too, and gives its executor to the engine.
    max_draft_tokens: guesses for one answer in one step at most.
    queue_seconds, deadline_seconds: of requests that set no less: they end with "timeout" when
        they have not started, or not ended, by then. None: never.
    """

    max_step_tokens: int = 256
    max_running: int = 16
    max_waiting: int = 256
    max_extra_logit_rows: int = 64
    prefix_cache: bool = True
    reserve_answers: bool = False
    queue_order: QueueOrder = "arrival"
    target_step_seconds: float | None = 0.25
    prompt_lookup: bool = False
    draft_model: str | None = None
    max_draft_tokens: int = 15
    queue_seconds: float | None = None
    deadline_seconds: float | None = None

    def __post_init__(self) -> None:
        for name in _COUNTS:
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        for name in ("target_step_seconds", "queue_seconds", "deadline_seconds"):
            seconds = getattr(self, name)
            if seconds is not None and not seconds > 0:
                raise ValueError(f"{name} must be above 0, not {seconds}")
        if self.queue_order not in get_args(QueueOrder):
            raise ValueError(
                f"queue_order must be one of {', '.join(get_args(QueueOrder))}, "
                f"not {self.queue_order!r}"
            )
