"""Grammars are counted by what came of them."""

import pytest

from runtime.engine.constraint import GRAMMAR_SECONDS
from runtime.text.grammar.counts import CheckCounts


def test_each_outcome_is_counted_and_timed() -> None:
    counts = CheckCounts((KeyError, TimeoutError))
    with counts.timed():
        pass
    for failure in (KeyError(), TimeoutError(), TimeoutError()):
        with pytest.raises(type(failure)), counts.timed():
            raise failure
    assert counts.by_outcome == {"ok": 1, "keyerror": 1, "timeouterror": 2, "error": 0}
    assert sum(counts.by_seconds) == 4 and len(counts.by_seconds) == len(GRAMMAR_SECONDS) + 1
    assert counts.by_seconds[0] == 4 and 0 < counts.seconds < 4 * GRAMMAR_SECONDS[0]


def test_what_takes_long_is_in_a_later_bucket() -> None:
    counts = CheckCounts(())
    counts._note("ok", GRAMMAR_SECONDS[2])
    counts._note("ok", 100.0)
    assert counts.by_seconds[2] == 1 and counts.by_seconds[-1] == 1
