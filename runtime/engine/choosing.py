"""Steps whose tokens the executor chooses itself, so that no logits are handed over."""

from collections.abc import Sequence

from runtime.engine.batch import NO_TOKEN, ChoosesTokens
from runtime.engine.outcome import Outcome, drawn
from runtime.engine.plan import Chunk, build_batch
from runtime.engine.sampling import NOT_FINITE, Draw


def chosen_outcomes(executor: ChoosesTokens, chunks: Sequence[Chunk]) -> list[Outcome] | None:
    """What the step brings each chunk; None, and nothing was run, where one of them needs to see
    its logits. The sequences gain their tokens."""
    ends = [chunk for chunk in chunks if chunk.num_logits > 0]
    if not all(_is_plain(chunk) for chunk in ends):
        return None
    draws = [chunk.sequence.sampler.take_plain_draw() for chunk in ends]
    batch = build_batch(chunks, executor.page_size)
    tokens = iter(executor.choose(batch, draws).tolist())
    return [_outcome(chunk, next(tokens) if chunk.num_logits else None) for chunk in chunks]


def _is_plain(chunk: Chunk) -> bool:
    sequence = chunk.sequence
    request = sequence.request
    lone = chunk.num_logits == 1 and chunk.reaches_end and not chunk.drafts
    token = request.pooling is None and request.max_tokens > 0
    return lone and token and sequence.sampler.is_plain(sequence.num_answer_tokens)


def _outcome(chunk: Chunk, token: int | None) -> Outcome:
    if token is None:
        return Outcome(chunk.num_certain)
    if token == NO_TOKEN:
        return drawn(chunk, Draw(None, error=NOT_FINITE, corrupted=True))
    return drawn(chunk, Draw(token))
