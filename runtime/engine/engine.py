"""The step loop: requests in, tokens out. Not thread-safe; `EngineThread` is."""

import time
from collections.abc import Callable, Iterable, Sequence

from runtime.engine.batch import Executor, GivesBack
from runtime.engine.constraint import Grammars, Matcher
from runtime.engine.drawing import row_drawer
from runtime.engine.intake import Intake
from runtime.engine.options import EngineOptions
from runtime.engine.outcome import Outcome
from runtime.engine.pages import PagePool
from runtime.engine.plan import Chunk
from runtime.engine.request import FinishReason, Request, TokenEvent
from runtime.engine.runner import ExecutorFailed, Runner
from runtime.engine.sampling import RowSampler
from runtime.engine.scheduler import Scheduler
from runtime.engine.sequence import SequenceState
from runtime.engine.speculation.speculator import Speculator, make_speculator
from runtime.engine.stats import Counters, EngineStats
from runtime.engine.timekeeper import Timekeeper
from runtime.engine.validate import duplicate_request, queue_full

DEFAULT_OPTIONS = EngineOptions()


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
        self._runner = Runner(executor)
        self._draw_row = row_drawer(executor)
        self._check = check
        self._on_step = on_step
        self._draft_executor = draft_executor
        self._clock = clock
        self._counters = Counters()
        self._intake = Intake(executor, grammars, self._counters, clock)
        self._times = Timekeeper(clock, options)
        self._expired: list[TokenEvent] = []
        self._sequences: dict[str, SequenceState] = {}
        self._most_pages = executor.num_pages - 1
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
        pool = self._scheduler.pool
        return EngineStats(
            **vars(self._counters.copy()),
            num_running=self.num_running,
            num_waiting=self.num_waiting,
            max_running=self.options.max_running,
            max_waiting=self.options.max_waiting,
            pages_in_use=pool.num_used,
            pages_evictable=pool.num_evictable,
            pages_total=pool.capacity,
            pages_written=pool.num_written,
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
        self._intake.check(request, self._scheduler.pool)

    def matcher_of(self, request: Request) -> Matcher | None:
        """What `add` needs of a constrained request. Slow; from any thread, but one at a time.
        RequestError for a constraint that cannot be compiled."""
        return self._intake.matcher_of(request)

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
        sampler = RowSampler(request, self._executor.vocab_size, matcher, self._draw_row)
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

    def limit_pages(self, most: int) -> None:
        """Use so many pages at most from now on, for as long as that is not said again, and give
        the others' memory back. Never fewer than a request that is live may need."""
        if not isinstance(self._executor, GivesBack):
            return
        pool = self._scheduler.pool
        longest = max((s.most_tokens for s in self._sequences.values()), default=1)
        self._most_pages = max(most, pool.pages_for(longest))
        self._scheduler.limit_pages(self._most_pages)
        self._give_back(self._scheduler.take_retired())
        self._check_if_asked()

    def step(self) -> list[TokenEvent]:
        """Run one step over what is queued; the tokens that it gave, in order of service, after the
        ends of requests whose time is over.

        Plan and reserve, run, then commit; if the executor raises, pages and queues are as before
        and ExecutorFailed is raised. [] if there was nothing to do.
        """
        started = self._clock()
        self._end_expired(started)
        flight = self._runner.take_ahead(self._is_live)
        chunks = self._planned(started) if flight is None else flight.chunks
        if not chunks:
            return self._take_expired()
        if self._on_step is not None:
            self._on_step([chunk.sequence.request.request_id for chunk in chunks])
        ran = self._clock()
        ahead = self._times.budget.tokens(len(chunks)) if self._speculator is None else 0
        try:
            outcomes = self._runner.run(chunks, flight, self._scheduler, ahead)
        except BaseException as cause:
            self._runner.roll_back(self._scheduler)
            self._scheduler.roll_back(chunks)
            self._counters.failed_steps += 1
            self._check_if_asked()
            if not isinstance(cause, Exception):
                raise
            ids = tuple(chunk.sequence.request.request_id for chunk in chunks)
            raise ExecutorFailed(f"a step of {len(ids)} requests failed: {cause}", ids) from cause
        num_prompt_tokens = sum([c.num_tokens for c in chunks if c.num_tokens - len(c.drafts) > 1])
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
        self._runner.take_ahead(self._is_live)
        self._give_back(range(1, self._executor.num_pages))
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
        self._give_back(self._scheduler.take_retired())
        self._times.start(chunks, now)
        return chunks

    def _give_back(self, pages: Sequence[int]) -> None:
        if pages and isinstance(self._executor, GivesBack):
            self._executor.give_back(pages)

    def _is_live(self, sequence: SequenceState) -> bool:
        return self._sequences.get(sequence.request.request_id) is sequence

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
            cached = sequence.num_cached_tokens if self.options.prefix_cache else None
            self._counters.note_prompt(sequence.num_prompt_tokens, cached)
        if self._speculator is not None:
            self._speculator.note(sequence, len(chunk.drafts), outcome.num_valid - 1)
        if outcome.reason is not None:
            self._counters.corrupted_requests += outcome.corrupted
            constrained = sequence.request.constraint is not None
            self._counters.grammar_failures += constrained and outcome.reason == "error"
            self._finish(sequence, outcome.reason, distrusted=outcome.corrupted)
        return outcome.events

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
        scheduler = Scheduler(pool, self._counters, self.options)
        scheduler.limit_pages(self._most_pages)
        return scheduler

    def _new_speculator(self) -> Speculator | None:
        return make_speculator(self.options, self._draft_executor, self._counters, self._clock)

    def _check_if_asked(self) -> None:
        if self._check:
            self.check_integrity()
