import threading

import pytest

from runtime.engine.turns import once_per_turn, turn


def test_what_a_turn_gives_is_told_once_at_its_end() -> None:
    told: list[str] = []

    def one() -> None:
        told.append("one")

    def other() -> None:
        told.append("other")

    once_per_turn(one)
    assert told == ["one"]
    with turn():
        for callback in (one, other, one):
            once_per_turn(callback)
        elsewhere = threading.Thread(target=once_per_turn, args=(other,))
        elsewhere.start()
        elsewhere.join()
        assert told == ["one", "other"], "another thread has no turn"
    assert told == ["one", "other", "one", "other"]
    with pytest.raises(ValueError, match="amid"), turn():
        once_per_turn(one)
        raise ValueError("amid")
    assert told[-1] == "one" and len(told) == 5
    once_per_turn(other)
    assert told[-1] == "other"
