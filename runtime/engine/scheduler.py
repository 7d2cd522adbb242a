"""Which tokens run in the next step, and in which pages."""

from bisect import insort
from collections.abc import Sequence
from operator import attrgetter

from runtime.engine.options import EngineOptions
from runtime.engine.pages import PagePool
from runtime.engine.plan import Chunk
from runtime.engine.prefix_cache import Key, PrefixCache
from runtime.engine.sequence import SequenceState
from runtime.engine.stats import Counters

_ORDER = attrgetter("order")


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
        self._counters = counters
        self._options = options
        self._watermark = pool.capacity // 100

    def enqueue(self, sequence: SequenceState) -> None:
        """The sequence waits for its turn."""
        insort(self.waiting, sequence, key=_ORDER)

    def schedule(self) -> list[Chunk]:
        """Reserve pages and plan one step. Follow with `commit` or `roll_back`.

        What is not rolled back: a preemption, and that kept pages are forgotten, because the
        executor may have written over them; and pages found computed, because that was true.
        """
        preempted = self._make_room()
        plan = _Plan(self._options.max_step_tokens, self._options.max_prompt_logit_rows)
        for sequence in self._in_turn():
            if plan.tokens == 0:
                break
            if not self._continue_computed(sequence, plan):
                continue
            if plan.room_for(sequence) > 0:
                self._reserve(sequence, plan, admitted=False)
        while self.waiting and plan.tokens > 0 and not preempted:
            if not self._admit(self.waiting[0], plan):
                break
        return plan.chunks

    def commit(self, chunks: Sequence[Chunk]) -> None:
        """The step ran: its tokens are computed."""
        for chunk in chunks:
            chunk.sequence.advance(chunk.num_tokens)
            if self.cache is not None:
                self.cache.note(chunk.sequence)

    def roll_back(self, chunks: Sequence[Chunk]) -> None:
        """The step did not run: pages and queues are as they were before the plan."""
        for chunk in reversed(chunks):
            sequence = chunk.sequence
            del sequence.pages[len(sequence.pages) - len(chunk.new_pages) :]
            self.pool.free(chunk.new_pages)
            if chunk.admitted:
                self.running.remove(sequence)
                self._release(sequence)
                self.enqueue(sequence)

    def remove(self, sequence: SequenceState) -> None:
        """The sequence has ended, wherever it was; what only it owned is free, or kept."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._release(sequence)

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

    def _in_turn(self) -> Sequence[SequenceState]:
        """Running sequences in the order in which the step's tokens are handed out. A prompt never
        holds up an answer; but where there are not even tokens for all answers, the first sequence
        advances whatever it needs."""
        prompts = [sequence for sequence in self.running if sequence.num_pending_tokens > 1]
        answers = len(self.running) - len(prompts)
        if not prompts or answers >= self._options.max_step_tokens:
            return self.running
        return [s for s in self.running if s.num_pending_tokens == 1] + prompts

    def _make_room(self) -> bool:
        """Preempt until every running sequence can hold what it knows."""
        before = self._counters.preemptions
        while sum(map(self._missing_pages, self.running)) > self.pool.num_available:
            victim = self.running.pop()
            assert self.running, "the first sequence does not fit the pool alone"
            self._release(victim)
            self.enqueue(victim)
            self._counters.preemptions += 1
        return self._counters.preemptions > before

    def _admit(self, sequence: SequenceState, plan: "_Plan") -> bool:
        """Let a waiting sequence run if it fits with its next token, and leaves each running one
        a page to grow into: admitting into the last page would preempt again at once."""
        if len(self.running) == self._options.max_running or plan.room_for(sequence) == 0:
            return False
        found = [] if self.cache is None else self.cache.match(sequence)
        idle = len(found) - self.pool.num_owned(found)
        wanted = min(sequence.num_known_tokens + 1, sequence.most_tokens)
        needed = self.pool.pages_for(wanted) - len(found)
        headroom = max(self._watermark, len(self.running)) if self.running else 0
        if needed + idle + headroom > self.pool.num_available:
            return False
        if self.cache is not None:
            self.cache.take(sequence, found)
            if self._is_computed_now(sequence, plan):
                self._release(sequence)
                return False
        self.waiting.remove(sequence)
        insort(self.running, sequence, key=_ORDER)
        self._reserve(sequence, plan, admitted=True)
        return True

    def _continue_computed(self, sequence: SequenceState, plan: "_Plan") -> bool:
        """Take what another sequence has computed meanwhile. False if another one computes the next
        page in this very step: waiting for it costs less than doing it twice."""
        if self.cache is not None and self.cache.may_extend(sequence):
            self.cache.take(sequence, self.cache.match(sequence))
            return not self._is_computed_now(sequence, plan)
        return True

    def _is_computed_now(self, sequence: SequenceState, plan: "_Plan") -> bool:
        assert self.cache is not None
        return (
            bool(plan.pages_in_flight)
            and self.cache.may_extend(sequence)
            and self.cache.next_key(sequence) in plan.pages_in_flight
        )

    def _missing_pages(self, sequence: SequenceState) -> int:
        return self.pool.pages_for(sequence.num_known_tokens) - len(sequence.pages)

    def _reserve(self, sequence: SequenceState, plan: "_Plan", *, admitted: bool) -> None:
        new_pages = self.pool.allocate(self._missing_pages(sequence))
        sequence.pages.extend(new_pages)
        start, num_tokens = sequence.num_computed_tokens, plan.room_for(sequence)
        num_logits = max(0, start + num_tokens - max(start, sequence.first_logit_position))
        chunk = Chunk(sequence, start, num_tokens, num_logits, tuple(new_pages), admitted)
        plan.add(chunk)
        filled = (start + num_tokens) // self.pool.page_size
        if self.cache is not None and num_tokens > 1 and filled > sequence.num_shared_pages:
            plan.pages_in_flight.add(self.cache.next_key(sequence))

    def _release(self, sequence: SequenceState) -> None:
        self.pool.free(sequence.pages)
        sequence.forget()


class _Plan:
    """A step in the making: its chunks, and what is left of tokens and of rows of logits for
    prompts' own probabilities."""

    def __init__(self, tokens: int, prompt_rows: int) -> None:
        self.chunks: list[Chunk] = []
        self.tokens = tokens
        self.pages_in_flight: set[Key] = set()
        """The first page that each chunk fills."""
        self._prompt_rows = prompt_rows

    def room_for(self, sequence: SequenceState) -> int:
        """Tokens of the sequence that still fit."""
        num_tokens = min(sequence.num_pending_tokens, self.tokens)
        if sequence.wants_prompt_logprobs:
            skipped = max(0, sequence.first_logit_position - sequence.num_computed_tokens)
            num_tokens = min(num_tokens, skipped + self._prompt_rows)
        return num_tokens

    def add(self, chunk: Chunk) -> None:
        self.chunks.append(chunk)
        self.tokens -= chunk.num_tokens
        if chunk.sequence.wants_prompt_logprobs:
            self._prompt_rows -= chunk.num_logits
