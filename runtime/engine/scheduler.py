"""Which tokens run in the next step, and in which pages."""

from collections import deque
from collections.abc import Sequence

from runtime.engine.options import EngineOptions
from runtime.engine.pages import PagePool
from runtime.engine.plan import Chunk
from runtime.engine.sequence import SequenceState
from runtime.engine.stats import Counters


class Scheduler:
    """First come, first served, over a budget of tokens per step; running sequences first.

    Out of pages, the last running sequence gives all of its own back and waits at the front, to
    be computed anew. Every sequence fits the pool alone, so the oldest one always advances.
    """

    def __init__(self, pool: PagePool, counters: Counters, options: EngineOptions) -> None:
        self.pool = pool
        self.running: list[SequenceState] = []
        self.waiting: deque[SequenceState] = deque()
        self._counters = counters
        self._max_step_tokens = options.max_step_tokens
        self._max_running = options.max_running
        self._max_prompt_logit_rows = options.max_prompt_logit_rows
        self._watermark = pool.capacity // 100

    def schedule(self) -> list[Chunk]:
        """Reserve pages and plan one step. Follow with `commit` or `roll_back`.

        A preemption is not part of what is rolled back: the executor may have written over the
        pages it freed.
        """
        preempted = self._make_room()
        room = _Room(self._max_step_tokens, self._max_prompt_logit_rows)
        chunks: list[Chunk] = []
        for sequence in self.running:
            if room.tokens == 0:
                break
            if room.for_chunk(sequence) > 0:
                chunks.append(self._reserve(sequence, room, admitted=False))
        while not preempted and self._can_admit() and room.for_chunk(self.waiting[0]) > 0:
            self.running.append(self.waiting.popleft())
            chunks.append(self._reserve(self.running[-1], room, admitted=True))
        return chunks

    def commit(self, chunks: Sequence[Chunk]) -> None:
        """The step ran: its tokens are computed."""
        for chunk in chunks:
            chunk.sequence.num_computed_tokens += chunk.num_tokens

    def roll_back(self, chunks: Sequence[Chunk]) -> None:
        """The step did not run: pages and queues are as they were before the plan."""
        for chunk in reversed(chunks):
            sequence = chunk.sequence
            del sequence.pages[len(sequence.pages) - len(chunk.new_pages) :]
            self.pool.free(chunk.new_pages)
            if chunk.admitted:
                self.running.remove(sequence)
                self.waiting.appendleft(sequence)

    def remove(self, sequence: SequenceState) -> None:
        """The sequence has ended, wherever it was; its pages are free."""
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
        assert all(not sequence.pages for sequence in self.waiting), "a waiting sequence has pages"
        arrivals = [sequence.arrival for sequence in live]
        assert arrivals == sorted(set(arrivals)), f"served out of order of arrival: {arrivals}"
        assert len(self.running) <= self._max_running, f"{len(self.running)} sequences are running"

    def _make_room(self) -> bool:
        """Preempt until every running sequence can hold what it knows."""
        before = self._counters.preemptions
        while sum(map(self._missing_pages, self.running)) > self.pool.num_free:
            victim = self.running.pop()
            assert self.running, "the oldest sequence does not fit the pool alone"
            self._release(victim)
            self.waiting.appendleft(victim)
            self._counters.preemptions += 1
        return self._counters.preemptions > before

    def _can_admit(self) -> bool:
        """Whether the first waiting sequence fits with its next token, and leaves each running one
        a page to grow into: admitting into the last page would preempt again at once."""
        if not self.waiting or len(self.running) == self._max_running:
            return False
        first = self.waiting[0]
        needed = self.pool.pages_for(min(first.num_known_tokens + 1, first.most_tokens))
        headroom = max(self._watermark, len(self.running)) if self.running else 0
        return needed + headroom <= self.pool.num_free

    def _missing_pages(self, sequence: SequenceState) -> int:
        return self.pool.pages_for(sequence.num_known_tokens) - len(sequence.pages)

    def _reserve(self, sequence: SequenceState, room: "_Room", *, admitted: bool) -> Chunk:
        new_pages = self.pool.allocate(self._missing_pages(sequence))
        sequence.pages.extend(new_pages)
        start, num_tokens = sequence.num_computed_tokens, room.for_chunk(sequence)
        num_logits = max(0, start + num_tokens - max(start, sequence.first_logit_position))
        chunk = Chunk(sequence, start, num_tokens, num_logits, tuple(new_pages), admitted)
        room.take(chunk)
        return chunk

    def _release(self, sequence: SequenceState) -> None:
        self.pool.free(sequence.pages)
        sequence.pages.clear()
        sequence.num_computed_tokens = 0


class _Room:
    """What is left of one step: tokens, and rows of logits for prompts' own probabilities."""

    def __init__(self, tokens: int, prompt_rows: int) -> None:
        self.tokens = tokens
        self._prompt_rows = prompt_rows

    def for_chunk(self, sequence: SequenceState) -> int:
        """Tokens of the sequence that still fit."""
        num_tokens = min(sequence.num_pending_tokens, self.tokens)
        if sequence.wants_prompt_logprobs:
            skipped = max(0, sequence.first_logit_position - sequence.num_computed_tokens)
            num_tokens = min(num_tokens, skipped + self._prompt_rows)
        return num_tokens

    def take(self, chunk: Chunk) -> None:
        self.tokens -= chunk.num_tokens
        if chunk.sequence.wants_prompt_logprobs:
            self._prompt_rows -= chunk.num_logits
