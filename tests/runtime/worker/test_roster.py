"""Which request the worker is given when, and what it is told of it."""

from runtime.engine.request import Request, SamplingParams, TokenEvent
from runtime.engine.stats import EngineStats
from runtime.worker.messages import Turn
from runtime.worker.roster import Roster


def test_a_request_s_time_counts_from_its_arrival_whichever_worker_has_it() -> None:
    roster = Roster(max_waiting=4)
    request = Request("a", (1, 2), 3, SamplingParams(), deadline_seconds=5.0)
    roster.add(request, lambda event: None, 10.0)
    (first,) = roster.hand_over(10.5)
    assert (first.request, first.waited) == (request, 0.5)
    assert list(roster.hand_over(11.0)) == []
    assert roster.lost(()) == []
    roster.restart()
    (again,) = roster.hand_over(14.0)
    assert (again.request, again.waited) == (request, 4.0) and again.number != first.number
    assert roster.stats().worker_restarts == 1


def test_tokens_come_to_whom_they_belong_until_the_end() -> None:
    roster = Roster(max_waiting=4)
    heard: list[TokenEvent] = []
    for name in ("a", "b"):
        roster.add(Request(name, (1,), 3, SamplingParams()), heard.append, 0.0)
    a, b = (message.number for message in roster.hand_over(0.0))
    first = TokenEvent("a", 5, num_cached_tokens=7, queue_seconds=0.5)
    end = TokenEvent("a", 9, "length", num_cached_tokens=7)
    turn = Turn([0, 0, b, 6, a, 8, 0, 0], [first, end], EngineStats(num_running=2))
    for listener, event in roster.turn(turn):
        listener(event)
    plain = TokenEvent("a", 8, num_cached_tokens=7)
    assert heard == [first, TokenEvent("b", 6), plain, end]
    # What comes after an end, or of a request that nobody has asked for, reaches nobody.
    assert roster.turn(Turn([a, 1, 99, 1])) == [] and len(roster) == 1
    assert roster.stats().num_running == 2, "as long as nothing newer is told"
