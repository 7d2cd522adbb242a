"""What the rows that a step gave mean for one sequence: tokens, an end, an embedding."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from runtime.engine.candidates import Float32
from runtime.engine.plan import Chunk
from runtime.engine.pooling import embedding_of, note_hidden
from runtime.engine.prompt_logprobs import note_prompt_logprobs
from runtime.engine.request import FinishReason, TokenEvent, TokenLogprobs
from runtime.engine.sampling import NOT_FINITE, Draw
from runtime.engine.sequence import SequenceState

_log = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Outcome:
    """num_valid: tokens of the chunk that are computed as they are: the known ones, and guesses
    that came true. num_drawn: tokens that the answer has gained. corrupted: the model produced
    what are no finite numbers."""

    num_valid: int
    num_drawn: int = 0
    corrupted: bool = False
    reason: FinishReason | None = None
    events: list[TokenEvent] = field(default_factory=list)


def outcome_of(chunk: Chunk, rows: Float32, best: Sequence[int]) -> Outcome:
    """Of the chunk's logits, float32 [num_logits, vocab], of which `best` are the largest ones'
    lowest indices; or of its hidden rows, [num_logits, hidden_size]. The sequence gains the tokens.

    Each draw is the one that there would be without guesses, from a row that holds only if all
    guesses before it came true: drawing stops at the first that did not. So text and seeds mean
    the same with and without them.
    """
    sequence = chunk.sequence
    outcome = Outcome(chunk.num_certain)
    if sequence.request.pooling is not None:
        _pool(outcome, chunk, rows)
        return outcome
    if sequence.wants_prompt_logprobs:
        try:
            note_prompt_logprobs(sequence, rows, chunk.first_logit_position)
        except FloatingPointError:
            _tell(outcome, sequence, Draw(None, error=NOT_FINITE, corrupted=True))
            return outcome
    if not chunk.reaches_end:
        return outcome
    first = len(rows) - 1 - len(chunk.drafts)
    for index in range(first, len(rows)):
        draw = _draw(sequence, rows[index], best[index])
        _tell(outcome, sequence, draw)
        guessed = index - first
        if outcome.reason is not None or guessed == len(chunk.drafts):
            break
        if draw.token_id != chunk.drafts[guessed]:
            break
        outcome.num_valid += 1
    return outcome


def drawn(chunk: Chunk, draw: Draw) -> Outcome:
    """Of a chunk whose one token was chosen elsewhere; the sequence gains it."""
    outcome = Outcome(chunk.num_certain)
    _tell(outcome, chunk.sequence, draw)
    return outcome


def _draw(sequence: SequenceState, row: Float32, best: int) -> Draw:
    if sequence.request.max_tokens == 0:
        return Draw(None)
    try:
        return sequence.sampler.draw(row, best, sequence.num_answer_tokens)
    except Exception as cause:
        _log.exception("a token could not be chosen")
        return Draw(None, error=f"A token could not be chosen: {cause}")


def _appended(sequence: SequenceState, draw: Draw) -> Draw:
    """The draw, once its token is part of the answer; or the error that its grammar makes of it,
    which is this request's alone."""
    if draw.token_id is None:
        return draw
    try:
        sequence.append(draw.token_id)
    except Exception as cause:
        _log.exception("a token could not be taken")
        return Draw(None, error=f"A token could not be taken: {cause}")
    return draw


def _tell(outcome: Outcome, sequence: SequenceState, draw: Draw) -> None:
    """A draw becomes part of the answer, and an event; one more where it completed the text of a
    constraint, since the token of a "stop" is no part of the text."""
    request = sequence.request
    scores: tuple[TokenLogprobs, ...] | None = None
    if request.sampling.prompt_logprobs is not None and sequence.num_answer_tokens == 0:
        scores = None if draw.error is not None else tuple(sequence.prompt_logprobs)
    draw = _appended(sequence, draw)
    token_id, completed = draw.token_id, False
    outcome.num_drawn += token_id is not None
    if draw.error is not None:
        outcome.reason, outcome.corrupted = "error", draw.corrupted
    elif token_id in request.stop_token_ids or (completed := sequence.sampler.finished):
        outcome.reason = "stop"
    elif sequence.num_answer_tokens == request.max_tokens:
        outcome.reason = "length"
    outcome.events.append(
        TokenEvent(
            request.request_id,
            token_id,
            None if completed else outcome.reason,
            draw.logprobs,
            draw.error,
            scores,
            sequence.num_cached_tokens,
            sequence.started_at - sequence.arrived_at if sequence.num_answer_tokens == 1 else 0.0,
        )
    )
    if completed:
        outcome.events.append(TokenEvent(request.request_id, None, outcome.reason))


def _pool(outcome: Outcome, chunk: Chunk, rows: Float32) -> None:
    """Hidden rows become part of the embedding, and an event once all are there."""
    sequence, embedding, error = chunk.sequence, None, None
    note_hidden(sequence, rows)
    if not chunk.reaches_end:
        return
    try:
        embedding = embedding_of(sequence)
    except FloatingPointError as cause:
        error, outcome.corrupted = f"The prompt could not be embedded: {cause}", True
    outcome.reason = "stop" if error is None else "error"
    outcome.events.append(
        TokenEvent(
            sequence.request.request_id,
            None,
            outcome.reason,
            error=error,
            num_cached_tokens=sequence.num_cached_tokens,
            embedding=embedding,
        )
    )
