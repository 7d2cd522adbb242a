"""How many pages a sequence needs, and how it comes to own them and lets them go."""

from collections.abc import Iterable, Sequence

from runtime.engine.pages import PagePool
from runtime.engine.sequence import SequenceState


class Ownership:
    """A running sequence owns pages for what it knows; or, where answers are reserved, for all that
    it may ever know. Guesses get pages that no other running sequence needs."""

    def __init__(self, pool: PagePool, reserve_answers: bool) -> None:
        self._pool = pool
        self._reserve_answers = reserve_answers
        self._spare = 0

    def missing(self, running: Iterable[SequenceState]) -> int:
        """Pages that they need for what they know, beyond those that they own."""
        size = self._pool.page_size
        return sum([-(-len(s.tokens) // size) - len(s.pages) for s in running])

    def spare(self, count: int) -> None:
        """So many pages are left for guesses in this step."""
        self._spare = count

    def take(self, sequence: SequenceState) -> Sequence[int]:
        """Allocate the pages that it lacks; returns them."""
        return self._grow(sequence, self._wanted(sequence))

    def take_for(self, sequence: SequenceState, drafts: Sequence[int]) -> tuple[int, Sequence[int]]:
        """How many of the guesses fit without pages that others need, and the pages allocated."""
        size, known = self._pool.page_size, len(sequence.tokens)
        own = max(len(sequence.pages), self._wanted(sequence))
        most = min(self._pool.pages_for(known + len(drafts)), own + self._spare)
        self._spare -= max(0, most - own)
        return min(len(drafts), most * size - known), self._grow(sequence, most)

    def drop_surplus(self, sequence: SequenceState) -> None:
        """Give back pages of guesses that did not come true."""
        surplus = len(sequence.pages) - self._wanted(sequence)
        if surplus > 0:
            self._pool.free(sequence.pages[-surplus:])
            del sequence.pages[-surplus:]

    def release(self, sequence: SequenceState) -> None:
        """It owns nothing any more, and nothing of it is computed."""
        self._pool.free(sequence.pages)
        sequence.forget()

    def _wanted(self, sequence: SequenceState) -> int:
        if self._reserve_answers:
            return self._pool.pages_for(sequence.most_tokens)
        return self._pool.pages_for(len(sequence.tokens))

    def _grow(self, sequence: SequenceState, num_pages: int) -> Sequence[int]:
        missing = num_pages - len(sequence.pages)
        if missing <= 0:
            return ()
        new_pages = self._pool.allocate(missing)
        sequence.pages.extend(new_pages)
        return new_pages
