"""Probabilities of the prompt's own tokens, gathered chunk by chunk."""

import numpy as np

from runtime.engine.candidates import Float32, log_probabilities
from runtime.engine.sequence import SequenceState


def note_prompt_logprobs(sequence: SequenceState, logits: Float32, first: int) -> None:
    """Keep what the rows, float32 [positions, vocab] from position `first` on, say of the tokens
    that follow them in the prompt.

    Raises FloatingPointError for logits that are not finite numbers.
    """
    request = sequence.request
    count = request.sampling.prompt_logprobs
    assert count is not None and first == len(sequence.prompt_logprobs)
    for row, token_id in zip(logits, request.prompt_tokens[first + 1 :], strict=False):
        if not np.isfinite(row.max()):
            raise FloatingPointError("the model produced logits that are not finite numbers")
        sequence.prompt_logprobs.append(log_probabilities(row, token_id, count))
    sequence.wants_prompt_logprobs = len(sequence.prompt_logprobs) < sequence.num_prompt_tokens - 1
