"""What one step will compute, and the arrays that say so to an executor."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtime.engine.batch import StepBatch
from runtime.engine.prefix_cache import Key
from runtime.engine.sequence import SequenceState


@dataclass(eq=False, slots=True)
class Chunk:
    """Tokens [start, start + num_tokens) of one sequence, planned for the next step. The last ones
    of them may be `drafts`: guesses at what follows the tokens that are known."""

    sequence: SequenceState
    start: int
    num_tokens: int
    num_logits: int
    """Logits are wanted of so many of its last tokens."""
    new_pages: Sequence[int]
    admitted: bool
    """It left the waiting queue in this very step."""
    reaches_end: bool
    """Only a sequence whose known tokens are all computed has a next token to choose."""
    drafts: Sequence[int] = ()

    @property
    def first_logit_position(self) -> int:
        return self.start + self.num_tokens - self.num_logits

    @property
    def is_lone(self) -> bool:
        """Its one row of logits chooses the next token, and no guess is looked at."""
        return self.num_logits == 1 and self.reaches_end and not self.drafts

    @property
    def num_certain(self) -> int:
        """Its tokens that are known, and no guesses."""
        return self.num_tokens - len(self.drafts)


class StepPlan:
    """A step in the making: its chunks, and what is left of its tokens and of the rows of logits
    that it may give to prompts' own probabilities."""

    def __init__(self, tokens: int, prompt_rows: int) -> None:
        self.chunks: list[Chunk] = []
        self.tokens = tokens
        self.pages_in_flight: set[Key] = set()
        """The first page that each chunk fills."""
        self._prompt_rows = prompt_rows

    def room_for(self, sequence: SequenceState) -> int:
        """Tokens of the sequence that still fit."""
        num_tokens = min(sequence.num_pending_tokens, self.tokens)
        if sequence.wants_prompt_logprobs:
            skipped = max(0, sequence.first_logit_position - sequence.num_computed_tokens)
            num_tokens = min(num_tokens, skipped + self._prompt_rows)
        return num_tokens

    def add(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)
        self.tokens -= chunk.num_tokens
        if chunk.sequence.wants_prompt_logprobs:
            self._prompt_rows -= chunk.num_logits


def build_batch(chunks: Sequence[Chunk], page_size: int) -> StepBatch:
    """Flatten the planned chunks; a sequence's row of pages reaches its last token of the step."""
    token_ids: list[int] = []
    positions: list[int] = []
    query_starts = [0]
    logit_rows: list[int] = []
    widths = [-(-(chunk.start + chunk.num_tokens) // page_size) for chunk in chunks]
    page_table = np.zeros((len(chunks), max(widths)), np.int32)
    for index, (chunk, width) in enumerate(zip(chunks, widths, strict=True)):
        start, end = chunk.start, chunk.start + chunk.num_tokens
        token_ids += chunk.sequence.tokens[start:end]
        token_ids += chunk.drafts
        # A token that another step has yet to choose is not there.
        token_ids += [0] * (query_starts[-1] + chunk.num_tokens - len(token_ids))
        positions += range(start, end)
        total = len(token_ids)
        query_starts.append(total)
        page_table[index, :width] = chunk.sequence.pages[:width]
        logit_rows += range(total - chunk.num_logits, total)
    return StepBatch(
        token_ids=np.array(token_ids, np.int32),
        positions=np.array(positions, np.int32),
        query_starts=np.array(query_starts, np.int32),
        page_table=page_table,
        logit_rows=np.array(logit_rows, np.int32),
    )
