"""What one step will compute, and the arrays that say so to an executor."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from runtime.engine.batch import StepBatch
from runtime.engine.sequence import SequenceState


@dataclass(frozen=True, eq=False, slots=True)
class Chunk:
    """Tokens [start, start + num_tokens) of one sequence, planned for the next step."""

    sequence: SequenceState
    start: int
    num_tokens: int
    num_logits: int
    """Logits are wanted of so many of its last tokens."""
    new_pages: tuple[int, ...]
    admitted: bool
    """It left the waiting queue in this very step."""

    @property
    def first_logit_position(self) -> int:
        return self.start + self.num_tokens - self.num_logits

    @property
    def reaches_end(self) -> bool:
        """Only a sequence whose known tokens are all computed has a next token to choose."""
        return self.start + self.num_tokens == self.sequence.num_known_tokens


def build_batch(chunks: Sequence[Chunk], page_size: int) -> StepBatch:
    """Flatten the planned chunks; a sequence's row of pages reaches its last token of the step."""
    token_ids: list[int] = []
    positions: list[int] = []
    query_starts = [0]
    logit_rows: list[int] = []
    widths = [-(-(chunk.start + chunk.num_tokens) // page_size) for chunk in chunks]
    page_table = np.zeros((len(chunks), max(widths)), np.int32)
    for index, (chunk, width) in enumerate(zip(chunks, widths, strict=True)):
        end = chunk.start + chunk.num_tokens
        token_ids += chunk.sequence.tokens[chunk.start : end]
        positions += range(chunk.start, end)
        query_starts.append(len(token_ids))
        page_table[index, :width] = chunk.sequence.pages[:width]
        logit_rows += range(len(token_ids) - chunk.num_logits, len(token_ids))
    return StepBatch(
        token_ids=np.array(token_ids, np.int32),
        positions=np.array(positions, np.int32),
        query_starts=np.array(query_starts, np.int32),
        page_table=page_table,
        logit_rows=np.array(logit_rows, np.int32),
    )
