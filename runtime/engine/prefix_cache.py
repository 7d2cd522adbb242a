"""Pages whose contents are known, to be found again by the tokens that they hold."""

from array import array
from collections.abc import Iterable, Sequence

from runtime.engine.pages import PagePool
from runtime.engine.sequence import Chain, SequenceState

Key = tuple[Chain, bytes]


class PrefixCache:
    """Finds full pages by their tokens and by everything before them.

    The key of a page is the chain that it continues and its own tokens, both compared in full: a
    chain is the salt for a first page, and for any other the serial number of the page before it.
    No number is given twice, so equal keys mean equal prefixes, whatever the hashes are. (The idea
    of vLLM's block hashes; there, equal hashes are trusted to mean equal tokens.)

    A sequence that owns a page owns the one before it, and leaves it later: the pool thus evicts
    the ends of chains first, and no page is kept that could not be found.
    """

    def __init__(self, pool: PagePool) -> None:
        self._pool = pool
        self._page_of: dict[Key, int] = {}
        self._key_of: dict[int, Key] = {}
        self._serial_of: dict[int, int] = {}
        self._next_serial = 0
        pool.on_evict = self._forget

    @property
    def num_pages(self) -> int:
        return len(self._page_of)

    def match(self, sequence: SequenceState, most: int | None = None) -> list[int]:
        """The pages, `most` of them at most, that hold what the sequence needs next, from the end
        of those that it shares already; never the one with its last token, whose logits are
        wanted."""
        pages: list[int] = []
        chain, index = sequence.chain, sequence.num_shared_pages
        left = self._most_pages(sequence) - index
        for _ in range(left if most is None else min(left, most)):
            page = self._page_of.get(self._key(sequence, chain, index + len(pages)))
            if page is None:
                break
            pages.append(page)
            chain = self._serial_of[page]
        return pages

    def take(self, sequence: SequenceState, pages: Sequence[int]) -> None:
        """The sequence goes on after these pages, which `match` has found."""
        if not pages:
            return
        first = sequence.num_shared_pages
        own = sequence.pages[first : first + len(pages)]
        self._pool.share(pages)
        sequence.pages[first : first + len(pages)] = pages
        self._pool.free(own)
        sequence.chain = self._serial_of[pages[-1]]
        sequence.num_shared_pages += len(pages)
        sequence.skip_to(sequence.num_shared_pages * self._pool.page_size)

    def may_extend(self, sequence: SequenceState) -> bool:
        """Whether the next token of the sequence opens a page that others may have filled."""
        size = self._pool.page_size
        computed = sequence.num_computed_tokens
        return computed % size == 0 and computed // size < self._most_pages(sequence)

    def next_key(self, sequence: SequenceState) -> Key:
        """Of the first page that the sequence has not filled yet."""
        return self._key(sequence, sequence.chain, sequence.num_shared_pages)

    def note(self, sequence: SequenceState) -> None:
        """Remember the pages that the sequence has filled. Where another page holds the same, the
        sequence takes that one and gives its own back: equal tokens after equal tokens have equal
        keys and values, bit by bit, because no row depends on who shares its step."""
        while (sequence.num_shared_pages + 1) * self._pool.page_size <= (
            sequence.num_computed_tokens
        ):
            index = sequence.num_shared_pages
            key = self.next_key(sequence)
            page, known = sequence.pages[index], self._page_of.get(key)
            if known is None:
                self._remember(page, key)
            elif known != page:
                self._pool.share([known])
                self._pool.free([page])
                sequence.pages[index] = page = known
            sequence.chain = self._serial_of[page]
            sequence.num_shared_pages += 1

    def distrust(self, sequence: SequenceState) -> None:
        """The sequence, which ends now, came to numbers that are not finite: nobody is to begin
        with what it has computed. What others share with it is theirs; what nobody owns goes too,
        because it may continue pages that go."""
        self._pool.evict_all()
        for page in sequence.pages[: sequence.num_shared_pages]:
            if self._pool.is_sole_owner(page):
                self._pool.drop_kept(page)

    def check_integrity(self, live: Iterable[SequenceState]) -> None:
        """Every page lies where its key says, can be reached, and holds what the live sequences
        that share it have computed; AssertionError names what does not."""
        assert self._page_of == {key: page for page, key in self._key_of.items()}
        assert self._serial_of.keys() == self._key_of.keys()
        serials = set(self._serial_of.values())
        assert len(serials) == len(self._serial_of), "two pages have the same serial number"
        for page, (chain, tokens) in self._key_of.items():
            assert isinstance(chain, str) or chain in serials, f"page {page} cannot be reached"
            assert len(tokens) == len(_packed([0] * self._pool.page_size))
        for sequence in live:
            chain = sequence.request.cache_salt
            full = sequence.num_computed_tokens // self._pool.page_size
            assert sequence.num_shared_pages == full, "a full page was not noted"
            for index in range(full):
                page = sequence.pages[index]
                key = self._key(sequence, chain, index)
                assert self._key_of.get(page) == key, f"page {page} holds other tokens"
                chain = self._serial_of[page]
            assert sequence.chain == chain, "a sequence continues another chain than its own"

    def _most_pages(self, sequence: SequenceState) -> int:
        """Pages at the front that others may have computed: none that logits are wanted of."""
        return sequence.first_logit_position // self._pool.page_size

    def _key(self, sequence: SequenceState, chain: Chain, index: int) -> Key:
        size = self._pool.page_size
        return chain, _packed(sequence.tokens[index * size : (index + 1) * size])

    def _remember(self, page: int, key: Key) -> None:
        self._pool.keep(page)
        self._page_of[key] = page
        self._key_of[page] = key
        self._serial_of[page] = self._next_serial
        self._next_serial += 1

    def _forget(self, page: int) -> None:
        del self._page_of[self._key_of.pop(page)]
        del self._serial_of[page]


def _packed(tokens: Sequence[int]) -> bytes:
    """As bytes, which take little memory, and whose hashes nobody can foresee: chosen prompts
    cannot make the dictionary slow."""
    return array("i", tokens).tobytes()
