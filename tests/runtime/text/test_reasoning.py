import re

from hypothesis import example, given
from hypothesis import strategies as st

from runtime.text.reasoning import CLOSE, OPEN, ReasoningSplitter, has_reasoning

PIECES = st.lists(
    st.sampled_from([OPEN, CLOSE, "<", "</", "th", "ink>", " ", "\n", "a", "b c"]), max_size=12
)


def split_whole(text: str, *, inside: bool) -> tuple[str, str]:
    """The oracle: the whole text at once."""
    if not inside:
        opened = re.match(rf"\s*{OPEN}", text)
        if opened is None:
            return "", text
        text = text[opened.end() :]
    thoughts, _, answer = text.partition(CLOSE)
    return thoughts.strip(), answer.lstrip()


@given(PIECES, st.booleans())
@example([OPEN, "a", "\n", CLOSE, "\n", "b c"], False)
@example(["a", "<", "/th", "b"], True)
def test_thoughts_are_told_apart_however_the_text_is_cut(pieces: list[str], inside: bool) -> None:
    splitter = ReasoningSplitter(inside=inside)
    found = [*map(splitter.feed, pieces), splitter.finish()]
    text = "".join(pieces)
    thoughts, answer = ("".join(part) for part in zip(*found, strict=True))
    assert (thoughts, answer) == split_whole(text, inside=inside)


def test_nothing_is_held_but_what_may_be_a_mark() -> None:
    splitter = ReasoningSplitter(inside=False)
    assert splitter.feed("<thi") == ("", "")
    assert splitter.feed("nk>so") == ("so", "")
    assert splitter.feed(" it </th") == (" it", "")
    assert splitter.feed("at is") == (" </that is", "")
    assert splitter.feed("</think>") == ("", "") and not splitter.thinks
    assert splitter.feed("yes ") == ("", "yes ")


def test_templates_tell_whether_their_models_think() -> None:
    assert has_reasoning("<think>{{ a }}</think>") and not has_reasoning("{{ a }}")
