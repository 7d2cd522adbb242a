"""Steps whose tokens the executor chooses itself, so that no logits are handed over.

Where the executor can, the step behind one begins before that one's tokens are known to anybody but
it, so that it never waits for the engine. Rows of the step that was begun so are only read for
sequences that are still there; nothing else follows from it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from runtime.engine.batch import (
    NO_TOKEN,
    NOTHING_LEFT,
    ChoosesTokens,
    Follows,
    Int32,
    PlainDraw,
    RunsAhead,
    StepInFlight,
)
from runtime.engine.constraint import ConstraintError
from runtime.engine.outcome import Outcome, drawn
from runtime.engine.plan import Chunk, build_batch
from runtime.engine.sampling import NOT_FINITE, NOTHING_TO_CHOOSE, Draw
from runtime.engine.scheduler import Scheduler
from runtime.engine.sequence import SequenceState


@dataclass(frozen=True, eq=False)
class Flight:
    """A step that has begun. rows: of its tokens, by chunk; None for a chunk that chooses none."""

    step: StepInFlight
    chunks: list[Chunk]
    rows: list[int | None]

    def outcomes(self) -> list[Outcome]:
        """What the step brings each chunk; the sequences gain their tokens."""
        tokens = self.step.tokens().tolist()
        return [
            _outcome(chunk, None if row is None else tokens[row])
            for chunk, row in zip(self.chunks, self.rows, strict=True)
        ]


class Chooser:
    """Begins steps; keeps the one that was begun ahead."""

    def __init__(self, executor: ChoosesTokens) -> None:
        self._executor = executor
        self._ahead: Flight | None = None

    def begin(self, chunks: Sequence[Chunk]) -> Flight | None:
        """None, and nothing was begun, where one of the chunks needs to see its logits."""
        ends = [chunk for chunk in chunks if chunk.num_logits > 0]
        draws = _draws(ends, num_unknown=0)
        if draws is None:
            return None
        batch = build_batch(chunks, self._executor.page_size)
        step: StepInFlight
        if isinstance(self._executor, RunsAhead):
            step = self._executor.begin(batch, draws)
        else:
            step = _Ended(self._executor.choose(batch, draws))
        numbers = iter(range(len(ends)))
        return Flight(step, list(chunks), [next(numbers) if c.num_logits else None for c in chunks])

    def begin_behind(self, flight: Flight, scheduler: Scheduler, max_tokens: int) -> None:
        """Begin the step behind `flight` as well, where all that runs is certain to go on in it
        and nobody could join."""
        if not isinstance(self._executor, RunsAhead):
            return
        if any(chunk.sequence.sampler.looks_back for chunk in flight.chunks):
            return
        chunks = scheduler.plan_ahead(flight.chunks, max_tokens)
        draws = _draws(chunks, num_unknown=1)
        if not chunks or draws is None:
            scheduler.roll_back(chunks)
            return
        row_of = {id(c.sequence): row for c, row in zip(flight.chunks, flight.rows, strict=True)}
        rows = np.array([row_of[id(chunk.sequence)] for chunk in chunks], np.int32)
        batch = build_batch(chunks, self._executor.page_size)
        try:
            step = self._executor.begin(batch, draws, Follows(flight.step, rows))
        except BaseException:
            scheduler.roll_back(chunks)
            raise
        self._ahead = Flight(step, chunks, list(range(len(chunks))))

    def take(self, is_live: Callable[[SequenceState], bool]) -> Flight | None:
        """The step that was begun ahead, with those of its chunks whose sequence is still there;
        None where there is none."""
        flight, self._ahead = self._ahead, None
        if flight is None:
            return None
        kept = [
            (chunk, row)
            for chunk, row in zip(flight.chunks, flight.rows, strict=True)
            if is_live(chunk.sequence)
        ]
        if not kept:
            return None
        return replace(flight, chunks=[chunk for chunk, _ in kept], rows=[row for _, row in kept])

    def roll_back(self, scheduler: Scheduler) -> None:
        """What was begun ahead is as if it had not been; before the step that it follows."""
        flight, self._ahead = self._ahead, None
        if flight is not None:
            scheduler.roll_back(flight.chunks)


@dataclass(frozen=True, eq=False)
class _Ended:
    chosen: Int32

    def tokens(self) -> Int32:
        return self.chosen


def _draws(ends: Sequence[Chunk], num_unknown: int) -> list[PlainDraw] | None:
    """num_unknown: tokens of each answer that are not known yet."""
    if not all(_is_plain(chunk) for chunk in ends):
        return None
    samplers = [chunk.sequence.sampler for chunk in ends]
    try:
        edits = [
            sampler.edits(chunk.sequence.num_answer_tokens + num_unknown)
            for chunk, sampler in zip(ends, samplers, strict=True)
        ]
    except ConstraintError:
        return None
    return [sampler.take_plain_draw(each) for sampler, each in zip(samplers, edits, strict=True)]


def _is_plain(chunk: Chunk) -> bool:
    sequence = chunk.sequence
    request = sequence.request
    token = request.pooling is None and request.max_tokens > 0
    return chunk.is_lone and token and sequence.sampler.shows_nothing


def _outcome(chunk: Chunk, token: int | None) -> Outcome:
    if token is None:
        return Outcome(chunk.num_certain)
    if token == NO_TOKEN:
        return drawn(chunk, Draw(None, error=NOT_FINITE, corrupted=True))
    if token == NOTHING_LEFT:
        return drawn(chunk, Draw(None, error=NOTHING_TO_CHOOSE))
    return drawn(chunk, Draw(token))
