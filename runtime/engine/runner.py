"""One step on an executor: what is planned goes in, what it means for each sequence comes out."""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from runtime.engine.batch import ChoosesTokens, DrawsRows, Executor, FindsBest, GivesHidden
from runtime.engine.candidates import Float32
from runtime.engine.choosing import Chooser, Flight
from runtime.engine.drawing import draw_together
from runtime.engine.outcome import Outcome, drawn, outcome_of
from runtime.engine.plan import Chunk, build_batch
from runtime.engine.sampling import Draw
from runtime.engine.scheduler import Scheduler
from runtime.engine.sequence import SequenceState


class ExecutorFailed(RuntimeError):  # noqa: N818
    """A step did not run and was rolled back; the same step may be tried again.

    `request_ids` are the requests that took part in it.
    """

    def __init__(self, message: str, request_ids: tuple[str, ...]) -> None:
        super().__init__(message)
        self.request_ids = request_ids


class Runner:
    """Has the executor choose tokens where it can, and else draws them from its logits."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._chooser = Chooser(executor) if isinstance(executor, ChoosesTokens) else None
        self._finder = executor if isinstance(executor, FindsBest) else None
        self._drawer = executor if isinstance(executor, DrawsRows) else None

    def take_ahead(self, is_live: Callable[[SequenceState], bool]) -> Flight | None:
        """The step that was begun before its turn, if any."""
        return None if self._chooser is None else self._chooser.take(is_live)

    def run(
        self, chunks: Sequence[Chunk], flight: Flight | None, scheduler: Scheduler, ahead: int
    ) -> Iterable[Outcome]:
        """Of each chunk, one after the other: each is to be committed before the next is drawn.

        flight: the step, where it has begun. ahead: tokens that the step behind it may compute,
        which is begun where that can be; 0 for none. Raises what the executor raises.
        """
        flight = flight or (None if self._chooser is None else self._chooser.begin(chunks))
        if flight is None:
            return self._drawn(chunks, *run_chunks(self._executor, chunks))
        if self._chooser is not None and ahead:
            self._chooser.begin_behind(flight, scheduler, ahead)
        return flight.outcomes()

    def roll_back(self, scheduler: Scheduler) -> None:
        """What was begun ahead is as if it had not been."""
        if self._chooser is not None:
            self._chooser.roll_back(scheduler)

    def _drawn(
        self, chunks: Sequence[Chunk], hidden: Float32, logits: Float32
    ) -> Iterator[Outcome]:
        best = best_of(logits, self._finder)
        together = draw_together(self._drawer, chunks, logits, best)
        row = hidden_row = 0
        for index, chunk in enumerate(chunks):
            if chunk.sequence.request.pooling is not None:
                hidden_row += chunk.num_logits
                yield outcome_of(chunk, hidden[hidden_row - chunk.num_logits : hidden_row], ())
            else:
                row += chunk.num_logits
                first = row - chunk.num_logits
                if index in together:
                    yield drawn(chunk, Draw(together[index]))
                else:
                    yield outcome_of(chunk, logits[first:row], best[first:row])


def run_chunks(executor: Executor, chunks: Sequence[Chunk]) -> tuple[Float32, Float32]:
    """Rows of hidden numbers for the embeddings among the chunks, of logits for the others.

    Raises ValueError for rows of a wrong shape, and whatever the executor raises.
    """
    size = executor.page_size
    pooled = [chunk for chunk in chunks if chunk.sequence.request.pooling is not None]
    others = chunks
    if pooled:
        others = [chunk for chunk in chunks if chunk.sequence.request.pooling is None]
    hidden = logits = np.empty((0, executor.vocab_size), np.float32)
    if pooled and isinstance(executor, GivesHidden):
        # The next call of the executor overwrites them.
        hidden = executor.hidden(build_batch(pooled, size)).copy()
    if others:
        logits = executor.step(build_batch(others, size))
    expected = (sum(chunk.num_logits for chunk in others), executor.vocab_size)
    if logits.shape != expected:
        raise ValueError(f"the executor returned logits {logits.shape} instead of {expected}")
    if len(hidden) != sum(chunk.num_logits for chunk in pooled):
        raise ValueError(f"the executor returned {len(hidden)} rows of hidden numbers")
    return hidden, logits


def best_of(logits: Float32, finder: FindsBest | None) -> list[int]:
    """Of each row of logits the index of the largest, the first of equal ones; of the first NaN
    where there is one. finder: gave the rows, and has looked for itself."""
    if not len(logits):
        return []
    best: list[int] = (logits.argmax(axis=1) if finder is None else finder.best()).tolist()
    return best
