"""Which tokens run in the next step, and in which pages."""

from bisect import insort
from collections.abc import Iterable, Sequence
from operator import attrgetter

from runtime.engine.admission import Admission
from runtime.engine.options import EngineOptions
from runtime.engine.ownership import Ownership
from runtime.engine.pages import PagePool
from runtime.engine.plan import Chunk, StepPlan
from runtime.engine.prefix_cache import PrefixCache
from runtime.engine.sequence import SequenceState
from runtime.engine.stats import Counters

_ORDER = attrgetter("order")
LONG_PROMPT_STEPS = 4
"""A prompt that needs more full steps than that lets those pass that need one."""


class Scheduler:
    """Priority first, then first come, first served, over a budget of tokens per step; running
    sequences first, and of these the ones that only need their next token.

    Out of pages, the last running sequence gives all of its own back and waits at the front, to
    be computed anew. Every sequence fits the pool alone, so the first one always advances.
    """

    def __init__(self, pool: PagePool, counters: Counters, options: EngineOptions) -> None:
        self.pool = pool
        self.cache = PrefixCache(pool) if options.prefix_cache else None
        self.running: list[SequenceState] = []
        self.waiting: list[SequenceState] = []
        self._admission = Admission(pool, self.cache, options)
        self._counters = counters
        self._options = options
        self._pages = Ownership(pool, options.reserve_answers)
        self._retired: list[int] = []
        self._moved = True
        """Somebody came or went since `schedule` let in whom it could."""

    def enqueue(self, sequence: SequenceState) -> None:
        """The sequence waits for its turn."""
        self._moved = True
        insort(self.waiting, sequence, key=_ORDER)

    def answers(self) -> list[SequenceState]:
        """Running sequences that need nothing but their next token."""
        return [s for s in self.running if len(s.tokens) - s.num_computed_tokens == 1]

    def schedule(self, max_tokens: int) -> list[Chunk]:
        """Reserve pages and plan one step. Follow with `commit` of each chunk or `roll_back`.

        What is not rolled back: a preemption, and that kept pages are forgotten, because the
        executor may have written over them; and pages found computed, because that was true.
        """
        full = self._make_room()
        self._moved = full
        plan = StepPlan(max_tokens, self._options.max_extra_logit_rows)
        answers: list[SequenceState] = []
        prompts: list[SequenceState] = []
        for sequence in self.running:
            pending = len(sequence.tokens) - sequence.num_computed_tokens
            (answers if pending == 1 else prompts).append(sequence)
        if prompts and len(answers) >= max_tokens:
            # There are not even tokens for all answers; the first sequence always advances.
            self._serve(self.running, plan)
            return plan.chunks
        self._serve_answers(answers, plan)
        if prompts and self._is_long(prompts[0]):
            prompts = self._let_short_ones_pass(prompts, plan, full)
        self._serve(prompts, plan)
        if not full:
            self._admit_all(plan)
        return plan.chunks

    def plan_ahead(self, chunks: Sequence[Chunk], max_tokens: int) -> list[Chunk]:
        """The step behind one of these chunks, which has begun, as far as it is certain before its
        tokens are known: one more token of each that is not at its longest then.

        Empty where another step might be planned, or where there are not the pages for it.
        """
        lone = all(chunk.is_lone for chunk in chunks)
        if not lone or len(chunks) != len(self.running) or (self.waiting and self._moved):
            return []
        going = [
            chunk.sequence
            for chunk in chunks
            if chunk.sequence.num_answer_tokens + 1 < chunk.sequence.request.max_tokens
        ]
        size = self.pool.page_size
        missing = [max(0, -(-(len(s.tokens) + 1) // size) - len(s.pages)) for s in going]
        if len(going) > max_tokens or sum(missing) > self.pool.num_available:
            return []
        planned = []
        for sequence, count in zip(going, missing, strict=True):
            new_pages = self.pool.allocate(count) if count else ()
            sequence.pages.extend(new_pages)
            planned.append(Chunk(sequence, len(sequence.tokens), 1, 1, new_pages, False, True))
        return planned

    def commit(self, chunk: Chunk, num_valid: int) -> None:
        """The step ran, and the first `num_valid` tokens of the chunk are computed as they are."""
        sequence = chunk.sequence
        sequence.advance(num_valid)
        if chunk.drafts:
            self._pages.drop_surplus(sequence)
        size = self.pool.page_size
        filled = sequence.num_computed_tokens >= (sequence.num_shared_pages + 1) * size
        if filled and self.cache is not None:
            self.cache.note(sequence)

    def roll_back(self, chunks: Sequence[Chunk]) -> None:
        """The step did not run: pages and queues are as they were before the plan."""
        for chunk in reversed(chunks):
            sequence = chunk.sequence
            del sequence.pages[len(sequence.pages) - len(chunk.new_pages) :]
            self.pool.free(chunk.new_pages)
            if chunk.admitted:
                self.running.remove(sequence)
                self._pages.release(sequence)
                self.enqueue(sequence)

    def remove(self, sequence: SequenceState, *, distrusted: bool = False) -> None:
        """The sequence has ended, wherever it was; what only it owned is free, or kept unless its
        numbers are distrusted."""
        self._moved = True
        if distrusted and self.cache is not None:
            self.cache.distrust(sequence)
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._pages.release(sequence)

    def limit_pages(self, most: int) -> None:
        """So many pages are to be in use at most: now if nobody owns the others, else from the next
        step on, for which requests are preempted."""
        self.pool.limit(most)
        self._retired += self.pool.retire()

    def take_retired(self) -> list[int]:
        """Pages that went out of use since this was asked last: there is no memory for them."""
        retired, self._retired = self._retired, []
        return retired

    def check_integrity(self) -> None:
        """Pages, order of service and limits are consistent between two steps."""
        live = [*self.running, *self.waiting]
        self.pool.check_integrity(sequence.pages for sequence in live)
        for sequence in live:
            sequence.check_integrity(self.pool.page_size)
        if self.cache is not None:
            self.cache.check_integrity(live)
        assert all(not sequence.pages for sequence in self.waiting), "a waiting sequence has pages"
        for queue in (self.running, self.waiting):
            order = [sequence.order for sequence in queue]
            assert order == sorted(set(order)), f"served out of order: {order}"
        running, limit = len(self.running), self._options.max_running
        assert running <= limit, f"{running} sequences are running"
        assert not (self._options.reserve_answers and self._counters.preemptions), "no page is left"

    def _serve_answers(self, answers: Iterable[SequenceState], plan: StepPlan) -> None:
        """Plan the next token of each, which is most of what an engine does."""
        for sequence in answers:
            if plan.tokens == 0:
                return
            start = sequence.num_computed_tokens
            if sequence.drafts:
                drafts, sequence.drafts = sequence.drafts[: plan.tokens - 1], ()
                num_fit, new_pages = self._pages.take_for(sequence, drafts)
                drafts, count = drafts[:num_fit], 1 + num_fit
                plan.add(Chunk(sequence, start, count, count, new_pages, False, True, drafts))
            else:
                new_pages = self._pages.take(sequence)
                plan.add(Chunk(sequence, start, 1, 1, new_pages, False, True))

    def _serve(self, sequences: Iterable[SequenceState], plan: StepPlan) -> None:
        """Plan a chunk of each running sequence, while there are tokens left."""
        for sequence in sequences:
            if plan.tokens == 0:
                return
            if self._continue_computed(sequence, plan) and plan.room_for(sequence) > 0:
                self._reserve(sequence, plan, admitted=False)

    def _let_short_ones_pass(
        self, prompts: Sequence[SequenceState], plan: StepPlan, full: bool
    ) -> list[SequenceState]:
        """Half of what is left of the step goes to short prompts behind a long one. Returns the
        prompts that have no chunk yet."""
        kept, plan.tokens = plan.tokens - plan.tokens // 2, plan.tokens // 2
        short = [sequence for sequence in prompts if not self._is_long(sequence)]
        self._serve(short, plan)
        if not full:
            self._admit_all(plan, only_short=True)
        plan.tokens += kept
        served = {id(chunk.sequence) for chunk in plan.chunks}
        return [sequence for sequence in prompts if id(sequence) not in served]

    def _is_long(self, sequence: SequenceState) -> bool:
        limit = self._options.max_step_tokens
        return sequence.num_pending_tokens > LONG_PROMPT_STEPS * limit

    def _make_room(self) -> bool:
        """Preempt until every running sequence can hold what it knows in the pages that there is
        memory for; whether that was needed."""
        if self._options.reserve_answers:
            self._retired += self.pool.retire()
            self._pages.spare(0)
            return False
        missing = self._pages.missing(self.running) + self.pool.num_owed
        preempted = missing > self.pool.num_available
        while missing > self.pool.num_available:
            victim = self.running.pop()
            assert self.running, "the first sequence does not fit the pool alone"
            missing -= self._pages.missing([victim])
            self._pages.release(victim)
            self.enqueue(victim)
            self._counters.preemptions += 1
        missing -= self.pool.num_owed
        self._retired += self.pool.retire()
        self._pages.spare(self.pool.num_available - missing)
        return preempted

    def _admit_all(self, plan: StepPlan, *, only_short: bool = False) -> None:
        """Let waiting sequences run, while there is room and those before them are let in."""
        while self.waiting and plan.tokens > 0 and len(self.running) < self._options.max_running:
            sequence = self._admission.choose(self.waiting)
            if only_short and self._is_long(sequence):
                return
            if not self._admit(sequence, plan):
                return

    def _admit(self, sequence: SequenceState, plan: StepPlan) -> bool:
        if plan.room_for(sequence) == 0:
            return False
        found = self._admission.found_pages(sequence, len(self.running))
        if found is None:
            return False
        if self.cache is not None:
            self.cache.take(sequence, found)
            if self._is_computed_now(sequence, plan):
                self._pages.release(sequence)
                return False
        for other in self.waiting:
            if other is sequence:
                break
            other.times_overtaken += 1
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_ORDER)
        self._reserve(sequence, plan, admitted=True)
        return True

    def _continue_computed(self, sequence: SequenceState, plan: StepPlan) -> bool:
        """Take what another sequence has computed meanwhile. False if another one computes the next
        page in this very step: waiting for it costs less than doing it twice."""
        if self.cache is None or not self.cache.may_extend(sequence):
            return True
        self.cache.take(sequence, self.cache.match(sequence))
        return not self._is_computed_now(sequence, plan)

    def _is_computed_now(self, sequence: SequenceState, plan: StepPlan) -> bool:
        assert self.cache is not None
        return (
            bool(plan.pages_in_flight)
            and self.cache.may_extend(sequence)
            and self.cache.next_key(sequence) in plan.pages_in_flight
        )

    def _reserve(self, sequence: SequenceState, plan: StepPlan, *, admitted: bool) -> None:
        new_pages = self._pages.take(sequence)
        start, num_tokens = sequence.num_computed_tokens, plan.room_for(sequence)
        end = start + num_tokens
        num_logits = max(0, end - max(start, sequence.first_logit_position))
        reaches_end = end == len(sequence.tokens)
        plan.add(Chunk(sequence, start, num_tokens, num_logits, new_pages, admitted, reaches_end))
        fills_page = num_tokens > 1 and end // self.pool.page_size > sequence.num_shared_pages
        if self.cache is not None and fills_page:
            plan.pages_in_flight.add(self.cache.next_key(sequence))
