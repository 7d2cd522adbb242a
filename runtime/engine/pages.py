"""The page pool: which pages of the KV cache are owned, and by how many."""

from collections import Counter
from collections.abc import Iterable, Sequence


class PagePool:
    """Hands out page numbers 1 .. num_pages - 1; page 0 is reserved and never owned.

    Pages come back to the top of a stack, first page of the list topmost, so that giving back
    what was just taken restores the pool exactly: rolling a step back needs no snapshot.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        if num_pages < 2 or page_size < 1:
            raise ValueError(
                f"a page pool needs at least 2 pages (page 0 is reserved) of at least 1 token, "
                f"not {num_pages} pages of {page_size}"
            )
        self.page_size = page_size
        self._free = list(range(num_pages - 1, 0, -1))
        self._references = [0] * num_pages

    @property
    def capacity(self) -> int:
        """Pages that can be owned at all."""
        return len(self._references) - 1

    @property
    def num_free(self) -> int:
        return len(self._free)

    @property
    def num_used(self) -> int:
        return self.capacity - len(self._free)

    def pages_for(self, num_tokens: int) -> int:
        """Pages that hold this many tokens."""
        return -(-num_tokens // self.page_size)

    def allocate(self, count: int) -> list[int]:
        """Take `count` pages, each with one reference; the caller has checked `num_free`."""
        assert 0 <= count <= len(self._free), f"{count} pages of {len(self._free)} free ones"
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._references[page] = 1
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """Add one reference to each of these owned pages."""
        for page in pages:
            assert self._references[page] > 0, f"page {page} is shared but nobody owns it"
            self._references[page] += 1

    def free(self, pages: Sequence[int]) -> None:
        """Drop one reference to each; a page without references can be allocated again."""
        for page in reversed(pages):
            assert self._references[page] > 0, f"page {page} is freed twice"
            self._references[page] -= 1
            if self._references[page] == 0:
                self._free.append(page)

    def check_integrity(self, owners: Iterable[Sequence[int]]) -> None:
        """Every page is free or owned by exactly the given page lists, never both; AssertionError
        names the first page where that fails."""
        owned = Counter(page for pages in owners for page in pages)
        free = Counter(self._free)
        assert 0 not in owned and 0 not in free, "the reserved page 0 is in use"
        for page in range(1, len(self._references)):
            assert self._references[page] == owned[page], (
                f"page {page} counts {self._references[page]} references, has {owned[page]} owners"
            )
            assert free[page] == (owned[page] == 0), (
                f"page {page} is {free[page]} times on the free list with {owned[page]} owners"
            )
        assert len(self._free) == free.total() <= self.capacity, "unknown pages on the free list"
