"""The step loop: requests in, tokens out. Not thread-safe; `EngineThread` is."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace

from runtime.engine.batch import ChoosesTokens, Executor, GivesHidden
from runtime.engine.candidates import Float32
from runtime.engine.choosing import Chooser, Flight
from runtime.engine.constraint import ConstraintError, Grammars, Matcher
from runtime.engine.options import EngineOptions
from runtime.engine.outcome import Outcome, outcome_of
from runtime.engine.pages import PagePool
from runtime.engine.plan import Chunk
from runtime.engine.request import FinishReason, Request, RequestError, TokenEvent
from runtime.engine.run import best_of, run_chunks
from runtime.engine.sampling import RowSampler
from runtime.engine.scheduler import Scheduler
from runtime.engine.sequence import SequenceState
from runtime.engine.speculation.speculator import Speculator, make_speculator
from runtime.engine.stats import Counters, EngineStats
from runtime.engine.timekeeper import Timekeeper
from runtime.engine.validate import check_request, duplicate_request, queue_full

DEFAULT_OPTIONS = EngineOptions()


class ExecutorFailed(RuntimeError):  # noqa: N818
    """A step did not run and was rolled back; the same step may be tried again.

    `request_ids` are the requests that took part in it.
    """

    def __init__(self, message: str, request_ids: tuple[str, ...]) -> None:
        super().__init__(message)
        self.request_ids = request_ids


class Engine:
    """Continues many token sequences at once over one executor.

    clock: seconds; what deadlines and the length of steps are measured with.
    check: verify the whole accounting after each step (for tests; costs time per page).
    on_step: is told the ids of the requests of each step before it runs.
    grammars: what constrained requests need.
    draft_executor: of a smaller model with the same vocabulary, which guesses what comes next.
    """

    def __init__(
        self,
        executor: Executor,
        options: EngineOptions = DEFAULT_OPTIONS,
        *,
        clock: Callable[[], float] = time.monotonic,
        check: bool = False,
        on_step: Callable[[Sequence[str]], None] | None = None,
        grammars: Grammars | None = None,
        draft_executor: Executor | None = None,
    ) -> None:
        if options.draft_model is not None and draft_executor is None:
            raise ValueError("draft_model is named, but its executor is missing")
        self.options = options
        self._executor = executor
        self._chooser = Chooser(executor) if isinstance(executor, ChoosesTokens) else None
        self._check = check
        self._on_step = on_step
        self._grammars = grammars
        self._draft_executor = draft_executor
        self._clock = clock
        self._counters = Counters()
        self._times = Timekeeper(clock, options)
        self._expired: list[TokenEvent] = []
        self._sequences: dict[str, SequenceState] = {}
        self._scheduler = self._new_scheduler()
        self._speculator = self._new_speculator()

    @property
    def has_work(self) -> bool:
        return bool(self._sequences or self._expired)

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
        counters = replace(self._counters, finished=dict(self._counters.finished))
        return EngineStats(
            **vars(counters),
            num_running=self.num_running,
            num_waiting=self.num_waiting,
            max_running=self.options.max_running,
            max_waiting=self.options.max_waiting,
            pages_in_use=self.pages_in_use,
            pages_evictable=self._scheduler.pool.num_evictable,
            pages_total=self._scheduler.pool.capacity,
            expected_wait_seconds=self.expected_wait(self.num_waiting),
        )

    def expected_wait(self, num_ahead: int) -> float:
        """Seconds that a request behind `num_ahead` waiting ones is likely to wait; at least 0.
        Safe from any thread."""
        return self._times.expected_wait(list(self._scheduler.running), num_ahead)

    def now(self) -> float:
        """By the engine's clock. Safe from any thread."""
        return self._clock()

    def validate(self, request: Request) -> None:
        """Raise RequestError if the request could never be served. Safe from any thread."""
        pool = self._scheduler.pool
        check_request(
            request,
            vocab_size=self._executor.vocab_size,
            max_positions=self._executor.max_positions,
            pool_tokens=pool.capacity * pool.page_size,
            gives_hidden=isinstance(self._executor, GivesHidden),
        )
        if request.constraint is not None and self._grammars is None:
            raise RequestError("this model cannot hold its answers to a grammar", "constraint")

    def matcher_of(self, request: Request) -> Matcher | None:
        """What `add` needs of a constrained request. Slow, and safe from any thread. RequestError
        for a constraint that cannot be compiled."""
        if request.constraint is None or self._grammars is None:
            return None
        try:
            return self._grammars.matcher(request.constraint)
        except ConstraintError as error:
            raise RequestError(str(error), "constraint") from error

    def add(
        self, request: Request, matcher: Matcher | None = None, arrived_at: float | None = None
    ) -> None:
        """Queue a request. RequestError if it can never be served, if the queue is full (code
        "queue_full") or if its id is in use (code "duplicate_request_id").

        matcher: from `matcher_of`; made here where there is none yet. arrived_at: by the engine's
        clock, where that was before now.
        """
        self.validate(request)
        if request.request_id in self._sequences:
            raise duplicate_request(request.request_id)
        if self.num_waiting >= self.options.max_waiting:
            raise queue_full(
                self.num_waiting, self.options.max_waiting, self.expected_wait(self.num_waiting)
            )
        matcher = matcher or self.matcher_of(request)
        sampler = RowSampler(request, self._executor.vocab_size, matcher)
        sequence = SequenceState(request, self._counters.requests, sampler)
        self._counters.requests += 1
        self._sequences[request.request_id] = sequence
        self._times.arrive(sequence, arrived_at)
        self._scheduler.enqueue(sequence)

    def abort(self, request_id: str, reason: FinishReason = "abort") -> TokenEvent | None:
        """End a request now and free its pages. Returns its last event; None if it is unknown or
        has ended already."""
        sequence = self._sequences.get(request_id)
        if sequence is None:
            return None
        self._finish(sequence, reason)
        return TokenEvent(request_id, None, reason)

    def step(self) -> list[TokenEvent]:
        """Run one step over what is queued; the tokens that it gave, in order of service, after the
        ends of requests whose time is over.

        Plan and reserve, run, then commit; if the executor raises, pages and queues are as before
        and ExecutorFailed is raised. [] if there was nothing to do.
        """
        started = self._clock()
        self._end_expired(started)
        flight = None if self._chooser is None else self._chooser.take(self._is_live)
        chunks = self._planned(started) if flight is None else flight.chunks
        if not chunks:
            return self._take_expired()
        if self._on_step is not None:
            self._on_step([chunk.sequence.request.request_id for chunk in chunks])
        ran = self._clock()
        try:
            outcomes: Iterable[Outcome] | None = self._chosen(flight, chunks)
            if outcomes is None:
                hidden, logits = run_chunks(self._executor, chunks)
        except BaseException as cause:
            if self._chooser is not None:
                self._chooser.roll_back(self._scheduler)
            self._scheduler.roll_back(chunks)
            self._counters.failed_steps += 1
            self._check_if_asked()
            if not isinstance(cause, Exception):
                raise
            ids = tuple(chunk.sequence.request.request_id for chunk in chunks)
            raise ExecutorFailed(f"a step of {len(ids)} requests failed: {cause}", ids) from cause
        num_prompt_tokens = sum([c.num_tokens for c in chunks if c.num_tokens - len(c.drafts) > 1])
        if outcomes is None:
            outcomes = self._outcomes(chunks, hidden, logits)
        events = self._take_expired() + self._commit(chunks, outcomes)
        now = self._clock()
        self._times.budget.note(num_prompt_tokens, now - started)
        if self._speculator is not None and num_prompt_tokens == 0:
            self._speculator.note_step(sum(chunk.num_tokens for chunk in chunks), now - ran)
        self._check_if_asked()
        return events

    def reset(self) -> tuple[str, ...]:
        """Drop every request and start with an empty pool; returns the ids that were live."""
        ids = tuple(self._sequences)
        self._counters.finished["error"] += len(ids)
        self._sequences.clear()
        self._times.end_all()
        if self._chooser is not None:
            self._chooser.take(self._is_live)
        self._scheduler = self._new_scheduler()
        self._speculator = self._new_speculator()
        return ids

    def check_integrity(self) -> None:
        """AssertionError if the accounting of pages, queues or requests is wrong anywhere."""
        self._scheduler.check_integrity()
        if self._speculator is not None:
            self._speculator.check_integrity()
        queued = [*self._scheduler.running, *self._scheduler.waiting]
        assert {id(s) for s in queued} == {id(s) for s in self._sequences.values()}, (
            "the queues and the live requests differ"
        )
        assert self._counters.requests == len(queued) + sum(self._counters.finished.values()), (
            "a request vanished without an end"
        )

    def _planned(self, now: float) -> list[Chunk]:
        answers = self._scheduler.answers()
        max_tokens = self._times.budget.tokens(len(answers))
        if self._speculator is not None and len(answers) == self.num_running:
            self._speculator.guess(answers, max_tokens)
        chunks = self._scheduler.schedule(max_tokens)
        self._times.start(chunks, now)
        return chunks

    def _is_live(self, sequence: SequenceState) -> bool:
        return self._sequences.get(sequence.request.request_id) is sequence

    def _chosen(self, flight: Flight | None, chunks: Sequence[Chunk]) -> list[Outcome] | None:
        """Where the executor chooses tokens itself, of a step that has begun or begins here; None
        where it cannot. The step behind it has begun, where that could be, before it is waited
        for."""
        if self._chooser is None:
            return None
        flight = flight or self._chooser.begin(chunks)
        if flight is None:
            return None
        if self._speculator is None:
            max_tokens = self._times.budget.tokens(len(chunks))
            self._chooser.begin_behind(flight, self._scheduler, max_tokens)
        return flight.outcomes()

    def _outcomes(
        self, chunks: Sequence[Chunk], hidden: Float32, logits: Float32
    ) -> Iterator[Outcome]:
        """One after the other, so that each is committed before the next is drawn."""
        best = best_of(self._executor, logits)
        row = hidden_row = 0
        for chunk in chunks:
            if chunk.sequence.request.pooling is not None:
                hidden_row += chunk.num_logits
                yield outcome_of(chunk, hidden[hidden_row - chunk.num_logits : hidden_row], ())
            else:
                row += chunk.num_logits
                first = row - chunk.num_logits
                yield outcome_of(chunk, logits[first:row], best[first:row])

    def _commit(self, chunks: Sequence[Chunk], outcomes: Iterable[Outcome]) -> list[TokenEvent]:
        self._counters.steps += 1
        events: list[TokenEvent] = []
        for chunk, outcome in zip(chunks, outcomes, strict=True):
            self._counters.computed_tokens += chunk.num_tokens
            events += self._advance(chunk, outcome)
        return events

    def _advance(self, chunk: Chunk, outcome: Outcome) -> list[TokenEvent]:
        """What the rows of a chunk's last tokens bring becomes true."""
        sequence = chunk.sequence
        begins = sequence.num_answer_tokens == outcome.num_drawn and chunk.reaches_end
        self._scheduler.commit(chunk, outcome.num_valid)
        self._counters.generated_tokens += outcome.num_drawn
        if begins:
            self._note_prompt(sequence)
        if self._speculator is not None:
            self._speculator.note(sequence, len(chunk.drafts), outcome.num_valid - 1)
        if outcome.reason is not None:
            self._counters.corrupted_requests += outcome.corrupted
            self._finish(sequence, outcome.reason, distrusted=outcome.corrupted)
        return outcome.events

    def _note_prompt(self, sequence: SequenceState) -> None:
        counters = self._counters
        counters.prompt_tokens += sequence.num_prompt_tokens
        if self.options.prefix_cache:
            counters.prefix_cache_queries += sequence.num_prompt_tokens
            counters.prefix_cache_hits += sequence.num_cached_tokens

    def _end_expired(self, now: float) -> None:
        """Their events stay here until a step has gone well."""
        for sequence, sentence in self._times.expired(now):
            self._finish(sequence, "timeout")
            name, cached = sequence.request.request_id, sequence.num_cached_tokens
            self._expired.append(
                TokenEvent(name, None, "timeout", error=sentence, num_cached_tokens=cached)
            )

    def _take_expired(self) -> list[TokenEvent]:
        expired, self._expired = self._expired, []
        return expired

    def _finish(
        self, sequence: SequenceState, reason: FinishReason, *, distrusted: bool = False
    ) -> None:
        if self._speculator is not None:
            self._speculator.drop(sequence)
        self._times.end(sequence)
        del self._sequences[sequence.request.request_id]
        self._counters.finished[reason] += 1
        self._scheduler.remove(sequence, distrusted=distrusted)

    def _new_scheduler(self) -> Scheduler:
        pool = PagePool(self._executor.num_pages, self._executor.page_size)
        return Scheduler(pool, self._counters, self.options)

    def _new_speculator(self) -> Speculator | None:
        return make_speculator(self.options, self._draft_executor, self._counters, self._clock)

    def _check_if_asked(self) -> None:
        if self._check:
            self.check_integrity()
