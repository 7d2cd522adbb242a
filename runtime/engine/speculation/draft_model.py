"""A smaller model that guesses: its own executor, and pages of its own."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from runtime.engine.batch import Executor, StepBatch
from runtime.engine.pages import PagePool
from runtime.engine.sequence import SequenceState

_FRESH_TOKENS = 4
"""More than so many new tokens are not what the last step brought."""


@dataclass(eq=False, slots=True)
class _Draft:
    """What the small model has computed of one text: `tokens`, the last of which may be guesses
    that did not come true."""

    tokens: list[int] = field(default_factory=list)
    num_true: int = 0
    """So many of them were known to be the text's when they were computed."""
    pages: list[int] = field(default_factory=list)


class DraftModel:
    """Continues texts greedily for a few tokens, all of them in the same steps.

    Where its pool is full, those that were not asked for go first; a text that finds no page gets
    no guesses. A text that is new is read in chunks of `max_step_tokens`, one each time.
    """

    def __init__(self, executor: Executor, max_step_tokens: int) -> None:
        self._executor = executor
        self._max_step_tokens = max_step_tokens
        self.pool = PagePool(executor.num_pages, executor.page_size)
        self._drafts: dict[SequenceState, _Draft] = {}
        self.was_reading = False
        """Whether the last guesses took time to read a text first."""

    def propose(self, wanted: Mapping[SequenceState, int]) -> dict[SequenceState, list[int]]:
        """Up to so many guesses for each; none for a text that is not read to its end yet."""
        budget = self._max_step_tokens
        self.was_reading = False
        asked = {}
        for sequence, count in wanted.items():
            draft = self._drafts.pop(sequence, None) or _Draft()
            self._drafts[sequence] = draft
            _keep_true(draft, sequence.tokens)
            pending = len(sequence.tokens) - len(draft.tokens)
            taken = min(pending, budget)
            room = self._executor.max_positions - len(sequence.tokens)
            count = min(count, room) if taken == pending else 0
            if taken == 0 or not self._make_room(
                draft, sequence, taken + max(0, count - 1), wanted
            ):
                continue
            budget -= taken
            self.was_reading |= taken > _FRESH_TOKENS
            draft.num_true = len(draft.tokens) + taken
            asked[sequence] = (taken, count)
        found: dict[SequenceState, list[int]] = {sequence: [] for sequence in asked}
        parts = {s: s.tokens[len(self._drafts[s].tokens) :][:n] for s, (n, _) in asked.items()}
        while parts:
            chosen = self._step(parts)
            parts = {}
            for sequence, token_id in chosen.items():
                if len(found[sequence]) < asked[sequence][1]:
                    found[sequence].append(token_id)
                if len(found[sequence]) < asked[sequence][1]:
                    parts[sequence] = [token_id]
        return found

    def drop(self, sequence: SequenceState) -> None:
        """The text has ended."""
        draft = self._drafts.pop(sequence, None)
        if draft is not None:
            self.pool.free(draft.pages)

    def check_integrity(self) -> None:
        self.pool.check_integrity(draft.pages for draft in self._drafts.values())
        for draft in self._drafts.values():
            assert len(draft.tokens) <= len(draft.pages) * self.pool.page_size

    def _make_room(
        self,
        draft: _Draft,
        sequence: SequenceState,
        count: int,
        wanted: Mapping[SequenceState, int],
    ) -> bool:
        missing = self.pool.pages_for(len(draft.tokens) + count) - len(draft.pages)
        for other in list(self._drafts):
            if missing <= self.pool.num_available:
                break
            if other not in wanted:
                self.drop(other)
        if missing > self.pool.num_available:
            self.drop(sequence)
            return False
        if missing > 0:
            draft.pages += self.pool.allocate(missing)
        return True

    def _step(self, parts: Mapping[SequenceState, Sequence[int]]) -> dict[SequenceState, int]:
        """Compute these next tokens of each text; the likeliest token after each."""
        size = self.pool.page_size
        drafts = [self._drafts[sequence] for sequence in parts]
        starts = [len(draft.tokens) for draft in drafts]
        for draft, tokens in zip(drafts, parts.values(), strict=True):
            draft.tokens += tokens
        lengths = [len(tokens) for tokens in parts.values()]
        widths = [-(-len(draft.tokens) // size) for draft in drafts]
        table = np.zeros((len(drafts), max(widths)), np.int32)
        for index, (draft, width) in enumerate(zip(drafts, widths, strict=True)):
            table[index, :width] = draft.pages[:width]
        ends = np.cumsum(lengths, dtype=np.int32)
        batch = StepBatch(
            token_ids=np.concatenate([np.array(part, np.int32) for part in parts.values()]),
            positions=np.concatenate(
                [
                    np.arange(start, start + n, dtype=np.int32)
                    for start, n in zip(starts, lengths, strict=True)
                ]
            ),
            query_starts=np.concatenate([np.zeros(1, np.int32), ends]),
            page_table=table,
            logit_rows=ends - np.int32(1),
        )
        best = self._executor.step(batch).argmax(axis=1).tolist()
        return dict(zip(parts, best, strict=True))


def _keep_true(draft: _Draft, tokens: Sequence[int]) -> None:
    """Forget guesses that did not come true; the last token is computed again for its logits."""
    end = min(len(draft.tokens), len(tokens) - 1)
    place = min(draft.num_true, end)
    while place < end and draft.tokens[place] == tokens[place]:
        place += 1
    del draft.tokens[place:]
