from hypothesis import example, given
from hypothesis import strategies as st

from runtime.text.stop import StopMatcher

STOPS = st.lists(st.text("abc", min_size=1, max_size=5), max_size=4)
DELTAS = st.lists(st.text("abc", max_size=6), max_size=12)


def first_stop(text: str, stops: list[str]) -> str | None:
    """The oracle: the shortest prefix that ends in a stop string, without the longest such one."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            return text[: end - max(map(len, ending))]
    return None


@given(STOPS, DELTAS)
@example(["aab"], ["a", "a", "a", "b"])
@example(["abcab", "b"], ["abca"])
def test_text_ends_before_the_first_stop_however_it_is_cut(
    stops: list[str], deltas: list[str]
) -> None:
    matcher = StopMatcher(stops)
    given_out = [matcher.feed(delta) for delta in deltas]
    before = first_stop("".join(deltas), stops)
    assert (matcher.matched is not None) == (before is not None)
    given_out.append(matcher.finish())
    assert "".join(given_out) == ("".join(deltas) if before is None else before)


@given(STOPS, DELTAS)
def test_nothing_is_held_but_the_longest_possible_beginning(
    stops: list[str], deltas: list[str]
) -> None:
    matcher, seen, given_out = StopMatcher(stops), "", ""
    for delta in deltas:
        seen += delta
        given_out += matcher.feed(delta)
        if matcher.matched is not None:
            break
        beginnings = [stop[:size] for stop in stops for size in range(len(stop))]
        held = max((len(b) for b in beginnings if seen.endswith(b)), default=0)
        assert len(given_out) == len(seen) - held


@given(STOPS, DELTAS)
def test_an_included_stop_is_all_that_comes_on_top(stops: list[str], deltas: list[str]) -> None:
    without, including = StopMatcher(stops), StopMatcher(stops, included=True)
    short = "".join([*map(without.feed, deltas), without.finish()])
    long = "".join([*map(including.feed, deltas), including.finish()])
    assert including.matched == without.matched
    assert long == short + (without.matched or "")


def test_a_long_run_costs_a_constant_per_character() -> None:
    matcher = StopMatcher(["a" * 1000 + "b"])
    comparisons = 200_000
    assert len(matcher.feed("a" * comparisons)) == comparisons - 1000
