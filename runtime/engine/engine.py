"""The step loop: requests in, tokens out. Not thread-safe; `EngineThread` is."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from runtime.engine.batch import Executor, StepBatch
from runtime.engine.pages import PagePool
from runtime.engine.request import FinishReason, Request, RequestError, TokenEvent
from runtime.engine.sampling import Draw, RowSampler, sample_rows
from runtime.engine.scheduler import Chunk, Scheduler
from runtime.engine.sequence import SequenceState
from runtime.engine.validate import check_request


class ExecutorFailed(RuntimeError):  # noqa: N818
    """A step did not run and was rolled back; the same step may be tried again.

    `request_ids` are the requests that took part in it.
    """

    def __init__(self, message: str, request_ids: tuple[str, ...]) -> None:
        super().__init__(message)
        self.request_ids = request_ids


@dataclass(frozen=True)
class EngineStats:
    """Gauges of this moment, and counters since the engine was made."""

    num_running: int = 0
    num_waiting: int = 0
    pages_in_use: int = 0
    pages_total: int = 0
    steps: int = 0
    failed_steps: int = 0
    preemptions: int = 0
    requests: int = 0
    prompt_tokens: int = 0
    """Of prompts that were computed to their end, each counted once."""
    generated_tokens: int = 0
    computed_tokens: int = 0
    """Everything that ran through the executor, recomputation after preemption included."""
    finished: dict[FinishReason, int] = field(default_factory=dict)


class Engine:
    """Continues many token sequences at once over one executor.

    check: verify the whole accounting after each step (for tests; costs time per page).
    """

    def __init__(
        self,
        executor: Executor,
        *,
        max_step_tokens: int = 256,
        max_running: int = 16,
        max_waiting: int = 64,
        check: bool = False,
    ) -> None:
        for name, value in (
            ("max_step_tokens", max_step_tokens),
            ("max_running", max_running),
            ("max_waiting", max_waiting),
        ):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, not {value}")
        self.max_waiting = max_waiting
        self._executor = executor
        self._max_step_tokens = max_step_tokens
        self._max_running = max_running
        self._check = check
        self._num_preemptions_before_reset = 0
        self._num_requests = 0
        self._num_steps = 0
        self._num_failed_steps = 0
        self._num_prompt_tokens = 0
        self._num_generated_tokens = 0
        self._num_computed_tokens = 0
        self._finished: dict[FinishReason, int] = {"stop": 0, "length": 0, "abort": 0, "error": 0}
        self._sequences: dict[str, SequenceState] = {}
        self._scheduler = self._new_scheduler()

    @property
    def has_work(self) -> bool:
        return bool(self._sequences)

    @property
    def num_running(self) -> int:
        return len(self._scheduler.running)

    @property
    def num_waiting(self) -> int:
        return len(self._scheduler.waiting)

    @property
    def pages_in_use(self) -> int:
        return self._scheduler.pool.num_used

    @property
    def stats(self) -> EngineStats:
        return EngineStats(
            num_running=self.num_running,
            num_waiting=self.num_waiting,
            pages_in_use=self.pages_in_use,
            pages_total=self._scheduler.pool.capacity,
            steps=self._num_steps,
            failed_steps=self._num_failed_steps,
            preemptions=self._num_preemptions_before_reset + self._scheduler.num_preemptions,
            requests=self._num_requests,
            prompt_tokens=self._num_prompt_tokens,
            generated_tokens=self._num_generated_tokens,
            computed_tokens=self._num_computed_tokens,
            finished=dict(self._finished),
        )

    def validate(self, request: Request) -> None:
        """Raise RequestError if the request could never be served. Safe from any thread."""
        pool = self._scheduler.pool
        check_request(
            request,
            vocab_size=self._executor.vocab_size,
            max_positions=self._executor.max_positions,
            pool_tokens=pool.capacity * pool.page_size,
        )

    def add(self, request: Request) -> None:
        """Queue a request. RequestError if it can never be served, if the queue is full (code
        "queue_full") or if its id is in use (code "duplicate_request_id")."""
        self.validate(request)
        if request.request_id in self._sequences:
            raise duplicate_request(request.request_id)
        if self.num_waiting >= self.max_waiting:
            raise queue_full(self.num_waiting, self.max_waiting)
        sampler = RowSampler(request, self._executor.vocab_size)
        sequence = SequenceState(request, self._num_requests, sampler)
        self._num_requests += 1
        self._sequences[request.request_id] = sequence
        self._scheduler.waiting.append(sequence)

    def abort(self, request_id: str, reason: FinishReason = "abort") -> TokenEvent | None:
        """End a request now and free its pages. Returns its last event; None if it is unknown or
        has ended already."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return None
        self._finish(sequence, reason)
        return TokenEvent(request_id, None, reason)

    def step(self) -> list[TokenEvent]:
        """Run one step over what is queued; the tokens that it gave, in order of service.

        Plan and reserve, run, then commit; if the executor raises, pages and queues are as before
        and ExecutorFailed is raised. [] if there was nothing to do.
        """
        chunks = self._scheduler.schedule()
        if not chunks:
            return []
        try:
            draws = self._run(chunks)
        except BaseException as cause:
            self._scheduler.roll_back(chunks)
            self._num_failed_steps += 1
            self._check_if_asked()
            if not isinstance(cause, Exception):
                raise
            ids = tuple(chunk.sequence.request.request_id for chunk in chunks)
            raise ExecutorFailed(f"a step of {len(ids)} requests failed: {cause}", ids) from cause
        events = self._commit(chunks, draws)
        self._check_if_asked()
        return events

    def reset(self) -> tuple[str, ...]:
        """Drop every request and start with an empty pool; returns the ids that were live."""
        ids = tuple(self._sequences)
        self._finished["error"] += len(ids)
        self._sequences.clear()
        self._num_preemptions_before_reset += self._scheduler.num_preemptions
        self._scheduler = self._new_scheduler()
        return ids

    def check_integrity(self) -> None:
        """AssertionError if the accounting of pages, queues or requests is wrong anywhere."""
        self._scheduler.check_integrity()
        queued = [*self._scheduler.running, *self._scheduler.waiting]
        assert {id(s) for s in queued} == {id(s) for s in self._sequences.values()}, (
            "the queues and the live requests differ"
        )
        assert self._num_requests == len(queued) + sum(self._finished.values()), (
            "a request vanished without an end"
        )

    def _run(self, chunks: Sequence[Chunk]) -> list[Draw]:
        batch = build_batch(chunks, self._scheduler.pool.page_size)
        logits = self._executor.step(batch)
        rows = [chunk.sequence for chunk in chunks if chunk.wants_logits]
        expected = (len(rows), self._executor.vocab_size)
        if logits.shape != expected:
            raise ValueError(f"the executor returned logits {logits.shape} instead of {expected}")
        return sample_rows(logits, [s.sampler for s in rows], [s.num_answer_tokens for s in rows])

    def _commit(self, chunks: Sequence[Chunk], draws: Sequence[Draw]) -> list[TokenEvent]:
        ready = [chunk.sequence for chunk in chunks if chunk.wants_logits]
        self._scheduler.commit(chunks)
        self._num_steps += 1
        self._num_computed_tokens += sum(chunk.num_tokens for chunk in chunks)
        return [self._advance(sequence, draw) for sequence, draw in zip(ready, draws, strict=True)]

    def _advance(self, sequence: SequenceState, draw: Draw) -> TokenEvent:
        request = sequence.request
        if sequence.num_answer_tokens == 0:
            self._num_prompt_tokens += len(request.prompt_tokens)
        if draw.token_id is None:
            self._finish(sequence, "error")
            return TokenEvent(request.request_id, None, "error", error=draw.error)
        sequence.append(draw.token_id)
        self._num_generated_tokens += 1
        reason: FinishReason | None = None
        if draw.token_id in request.stop_token_ids:
            reason = "stop"
        elif sequence.num_answer_tokens == request.max_tokens:
            reason = "length"
        if reason is not None:
            self._finish(sequence, reason)
        return TokenEvent(request.request_id, draw.token_id, reason, draw.logprobs)

    def _finish(self, sequence: SequenceState, reason: FinishReason) -> None:
        del self._sequences[sequence.request.request_id]
        self._scheduler.remove(sequence)
        self._finished[reason] += 1

    def _new_scheduler(self) -> Scheduler:
        pool = PagePool(self._executor.num_pages, self._executor.page_size)
        return Scheduler(pool, self._max_step_tokens, self._max_running)

    def _check_if_asked(self) -> None:
        if self._check:
            self.check_integrity()


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
        if chunk.wants_logits:
            logit_rows.append(len(token_ids) - 1)
    return StepBatch(
        token_ids=np.array(token_ids, np.int32),
        positions=np.array(positions, np.int32),
        query_starts=np.array(query_starts, np.int32),
        page_table=page_table,
        logit_rows=np.array(logit_rows, np.int32),
    )


def queue_full(num_waiting: int, max_waiting: int) -> RequestError:
    return RequestError(
        f"{num_waiting} requests are waiting and the queue holds {max_waiting}; try again later",
        code="queue_full",
    )


def duplicate_request(request_id: str) -> RequestError:
    return RequestError(
        f"a request named {request_id!r} is still running; choose another id",
        "request_id",
        "duplicate_request_id",
    )
