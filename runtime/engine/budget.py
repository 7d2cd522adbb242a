"""How many tokens a step may compute, so that answers are not kept waiting by prompts."""

_WEIGHT = 0.25
"""Of the latest step in what is remembered of all."""

LEAST_PROMPT_TOKENS = 32
"""A step has room for so many tokens of prompts at least: smaller chunks read all weights for next
to nothing."""


class StepBudget:
    """Learns from the steps that have run what an answer's and a prompt's tokens cost.

    target_seconds: what a step may take while answers are being written; None: as long as it does.
    """

    def __init__(self, max_tokens: int, target_seconds: float | None) -> None:
        self._max_tokens = max_tokens
        self._target = target_seconds
        self._answers_seconds = 0.0
        """Of a step without prompts."""
        self._prompt_token_seconds = 0.0

    def tokens(self, num_answers: int) -> int:
        """Tokens that the next step may compute, of which `num_answers` are those of answers."""
        if self._target is None or num_answers == 0 or self._prompt_token_seconds == 0.0:
            return self._max_tokens
        room = (self._target - self._answers_seconds) / self._prompt_token_seconds
        prompt_tokens = max(LEAST_PROMPT_TOKENS, int(min(room, self._max_tokens)))
        return min(self._max_tokens, num_answers + prompt_tokens)

    def note(self, num_prompt_tokens: int, seconds: float) -> None:
        """A step with so many tokens of prompts, beside those of answers, took so long."""
        if num_prompt_tokens == 0:
            self._answers_seconds = _moved(self._answers_seconds, seconds)
        else:
            each = max(0.0, seconds - self._answers_seconds) / num_prompt_tokens
            self._prompt_token_seconds = _moved(self._prompt_token_seconds, each)


def _moved(mean: float, latest: float) -> float:
    return latest if mean == 0.0 else mean + _WEIGHT * (latest - mean)
