"""Figures of answers, as the server sees them; on the event loop's thread alone."""

from typing import get_args

from runtime.engine.request import FinishReason
from runtime.server.metrics_histogram import (
    CHOICE_BOUNDS,
    FINE_ITL_BOUNDS,
    FINE_REQUEST_BOUNDS,
    TTFT_BOUNDS,
    Histogram,
    token_bounds,
)

_LONGEST_CONTEXT = 10_000_000


class AnswerMetrics:
    """Of one model's answers. `finished` counts ends; the other figures are of answers that had
    at least one token."""

    def __init__(self) -> None:
        self.time_to_first_token = Histogram(TTFT_BOUNDS)
        self.inter_token_latency = Histogram(FINE_ITL_BOUNDS)
        self.time_per_output_token = Histogram(FINE_ITL_BOUNDS)
        self.request_latency = Histogram(FINE_REQUEST_BOUNDS)
        self.queue_time = Histogram(FINE_REQUEST_BOUNDS)
        self.prefill_time = Histogram(FINE_REQUEST_BOUNDS)
        self.inference_time = Histogram(FINE_REQUEST_BOUNDS)
        self.decode_time = Histogram(FINE_REQUEST_BOUNDS)
        self.prompt_tokens = Histogram(token_bounds(_LONGEST_CONTEXT))
        self.computed_prompt_tokens = Histogram(token_bounds(_LONGEST_CONTEXT))
        self.answer_tokens = Histogram(token_bounds(_LONGEST_CONTEXT))
        self.max_tokens = Histogram(token_bounds(_LONGEST_CONTEXT))
        self.choices = Histogram(CHOICE_BOUNDS)
        """Answers to each prompt that was asked for `n` of them, and, next, their longest."""
        self.longest_answer = Histogram(token_bounds(_LONGEST_CONTEXT))
        self.finished: dict[FinishReason, int] = dict.fromkeys(get_args(FinishReason), 0)
