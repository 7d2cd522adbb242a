"""The page pool against a set of pages."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engine.pages import PagePool


def state_of(pool: PagePool) -> tuple[list[int], list[int]]:
    return list(pool._free), list(pool._references)


@given(
    num_pages=st.integers(2, 20),
    actions=st.lists(st.tuples(st.sampled_from(["take", "share", "give"]), st.integers(0, 30))),
)
def test_pool_against_owner_lists(num_pages: int, actions: list[tuple[str, int]]) -> None:
    pool = PagePool(num_pages, 4)
    owners: list[list[int]] = []
    for action, number in actions:
        if action == "take" and number <= pool.num_available:
            before = {page for pages in owners for page in pages}
            owners.append(pool.allocate(number))
            assert len(set(owners[-1])) == number and not before & {0, *owners[-1]}
        elif action == "share" and owners:
            owners.append(list(owners[number % len(owners)]))
            pool.share(owners[-1])
        elif action == "give" and owners:
            pool.free(owners.pop(number % len(owners)))
        pool.check_integrity(owners)
        assert pool.num_used == len({page for pages in owners for page in pages})
        assert pool.num_available + pool.num_used == pool.capacity == num_pages - 1


@given(st.lists(st.integers(0, 5), max_size=5))
def test_freeing_in_reverse_order_undoes_allocating(counts: list[int]) -> None:
    pool = PagePool(40, 4)
    pool.free(pool.allocate(7)[3:])
    before = state_of(pool)
    taken = [pool.allocate(count) for count in counts]
    for pages in reversed(taken):
        pool.free(pages)
    assert state_of(pool) == before


@pytest.mark.parametrize("num_tokens", range(13))
def test_pages_for_counts_started_pages(num_tokens: int) -> None:
    assert PagePool(9, 4).pages_for(num_tokens) == len({p // 4 for p in range(num_tokens)})


def test_misuse_is_caught_at_once() -> None:
    pool = PagePool(4, 4)
    (page,) = pool.allocate(1)
    pool.free([page])
    with pytest.raises(AssertionError, match="freed twice"):
        pool.free([page])
    with pytest.raises(AssertionError, match="nobody owns"):
        pool.share([page])
    with pytest.raises(AssertionError, match="4 pages of 3 free"):
        pool.allocate(4)


@pytest.mark.parametrize(
    ("owners", "message"),
    [([[1], [1]], "2 owners"), ([], "0 owners"), ([[1], [2]], "page 2"), ([[0], [1]], "page 0")],
)
def test_integrity_check_sees_every_kind_of_lie(owners: list[list[int]], message: str) -> None:
    pool = PagePool(4, 4)
    assert pool.allocate(1) == [1]
    pool.check_integrity([[1]])
    with pytest.raises(AssertionError, match=message):
        pool.check_integrity(owners)


def test_integrity_check_sees_a_page_listed_free_twice() -> None:
    pool = PagePool(4, 4)
    pool._free.append(pool._free[0])
    with pytest.raises(AssertionError, match="2 times"):
        pool.check_integrity([])


@pytest.mark.parametrize(("num_pages", "page_size"), [(1, 4), (0, 4), (4, 0)])
def test_a_pool_without_room_is_refused(num_pages: int, page_size: int) -> None:
    with pytest.raises(ValueError, match="at least 2 pages"):
        PagePool(num_pages, page_size)
