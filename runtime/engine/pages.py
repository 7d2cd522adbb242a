"""The page pool: which pages of the KV cache are owned, by how many, and which are only kept."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence


def _no_listener(page: int) -> None:
    pass


class PagePool:
    """Hands out page numbers 1 .. num_pages - 1; page 0 is reserved and never owned.

    Free pages come back to the top of a stack, first page of the list topmost, so that giving back
    what was just taken restores the pool exactly: rolling a step back needs no snapshot.

    A page that is marked as kept does not become free when its last owner leaves, but stays as it
    is until the pool needs it: the one that was left first goes first, and `on_evict` is told.

    Where there is less memory than was planned, a limit takes pages out of use: at first those that
    nobody owns, later those that were owed.
    """

    def __init__(self, num_pages: int, page_size: int) -> None:
        if num_pages < 2 or page_size < 1:
            raise ValueError(
                f"a page pool needs at least 2 pages (page 0 is reserved) of at least 1 token, "
                f"not {num_pages} pages of {page_size}"
            )
        self.page_size = page_size
        self.on_evict: Callable[[int], None] = _no_listener
        self._free = list(range(num_pages - 1, 0, -1))
        self._references = [0] * num_pages
        self._kept = [False] * num_pages
        self._evictable: dict[int, None] = {}
        """Kept pages without owners, the one to go first at the front."""
        self._most = num_pages - 1
        self._retired: list[int] = []
        """Out of use."""
        self._written: set[int] = set()

    @property
    def capacity(self) -> int:
        """Pages that can be owned at all."""
        return len(self._references) - 1 - len(self._retired)

    @property
    def num_available(self) -> int:
        """Pages that can be allocated now."""
        return len(self._free) + len(self._evictable)

    @property
    def num_evictable(self) -> int:
        """Pages that nobody owns, but which hold what may be asked for again."""
        return len(self._evictable)

    @property
    def num_used(self) -> int:
        return self.capacity - self.num_available

    @property
    def num_owed(self) -> int:
        """Pages in use beyond the limit: `retire` takes them once nobody owns them."""
        return max(0, self.capacity - self._most)

    @property
    def num_written(self) -> int:
        """Pages that take memory: they were owned once, and not given up since."""
        return len(self._written)

    def pages_for(self, num_tokens: int) -> int:
        """Pages that hold this many tokens."""
        return -(-num_tokens // self.page_size)

    def num_owned(self, pages: Iterable[int]) -> int:
        """How many of these pages have an owner."""
        return sum(self._references[page] > 0 for page in pages)

    def allocate(self, count: int) -> list[int]:
        """Take `count` pages, each with one reference; the caller has checked `num_available`."""
        assert 0 <= count <= self.num_available, f"{count} pages of {self.num_available} free ones"
        if count > len(self._free):
            self._evict(count - len(self._free))
        pages = [self._free.pop() for _ in range(count)]
        for page in pages:
            self._references[page] = 1
        self._written.update(pages)
        return pages

    def share(self, pages: Iterable[int]) -> None:
        """Add one reference to each of these pages, which are owned or kept."""
        for page in pages:
            if self._references[page] == 0:
                assert page in self._evictable, f"page {page} is shared but nobody owns it"
                del self._evictable[page]
            self._references[page] += 1

    def keep(self, page: int) -> None:
        """Mark an owned page: it outlives its owners until the pool needs it."""
        assert self._references[page] > 0, f"page {page} is kept but nobody owns it"
        self._kept[page] = True

    def is_sole_owner(self, page: int) -> bool:
        """Whether the page has one reference."""
        return self._references[page] == 1

    def drop_kept(self, page: int) -> None:
        """An owned page is kept no longer than its owners need it; `on_evict` is told."""
        assert self._references[page] > 0 and self._kept[page], f"page {page} is not kept"
        self._kept[page] = False
        self.on_evict(page)

    def evict_all(self) -> None:
        """Every page without an owner is free."""
        self._evict(len(self._evictable))

    def free(self, pages: Sequence[int]) -> None:
        """Drop one reference to each, the last page first; a page without references can be
        allocated again."""
        for page in reversed(pages):
            assert self._references[page] > 0, f"page {page} is freed twice"
            self._references[page] -= 1
            if self._references[page] == 0:
                if self._kept[page]:
                    self._evictable[page] = None
                else:
                    self._free.append(page)

    def limit(self, most: int) -> None:
        """No more than `most` pages are to be in use. What comes back into use is free; what has
        to go is owed."""
        self._most = most
        while self._retired and self.capacity < most:
            self._free.insert(0, self._retired.pop())

    def retire(self) -> list[int]:
        """Take what is owed out of use, as far as nobody owns it: free pages, then kept ones.
        Returns them; nobody will ask for what they hold."""
        count = min(self.num_owed, self.num_available)
        if not count:
            return []
        if count > len(self._free):
            self._evict(count - len(self._free))
        # Those that take no memory first, then neighbours: the system frees memory in large pieces.
        pages = sorted(self._free, key=lambda page: (page in self._written, -page))[:count]
        out = set(pages)
        self._free = [page for page in self._free if page not in out]
        self._retired += pages
        self._written -= out
        return pages

    def check_integrity(self, owners: Iterable[Sequence[int]]) -> None:
        """Every page is free, kept, retired or owned by exactly the given page lists, and only one
        of these; AssertionError names the first page where that fails."""
        owned = Counter(page for pages in owners for page in pages)
        idle = Counter([*self._free, *self._evictable, *self._retired])
        assert 0 not in owned and 0 not in idle, "the reserved page 0 is in use"
        for page in range(1, len(self._references)):
            assert self._references[page] == owned[page], (
                f"page {page} counts {self._references[page]} references, has {owned[page]} owners"
            )
            assert idle[page] == (owned[page] == 0), (
                f"page {page} is {idle[page]} times on the free list with {owned[page]} owners"
            )
            kept = self._kept[page] and not owned[page]
            assert (page in self._evictable) == kept, f"page {page} is kept by mistake or lost"
        num_idle = self.num_available + len(self._retired)
        assert idle.total() == num_idle < len(self._references), "unknown pages are free"
        assert self._written.isdisjoint(self._retired), "a page out of use takes memory"
        assert self._written.issuperset([*owned, *self._evictable]), "a page in use takes none"

    def _evict(self, count: int) -> None:
        for _ in range(count):
            page = next(iter(self._evictable))
            del self._evictable[page]
            self._kept[page] = False
            self._free.append(page)
            self.on_evict(page)
