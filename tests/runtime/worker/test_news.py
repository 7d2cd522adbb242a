"""What a step gave arrives at the front as it was, in its order."""

import socket
from dataclasses import dataclass, replace
from typing import cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.engine.request import FinishReason, TokenEvent, TokenLogprobs
from runtime.worker.messages import FrameReader, ProtocolError, Turn, news_of
from runtime.worker.news import TurnWriter, read_turn
from runtime.worker.outbox import Outbox

NAMES = ("a", "b", "c")
NUMBERS = {name: number for number, name in enumerate(NAMES, 1)}


@dataclass
class Known:
    request_id: str
    num_cached_tokens: int = -1


EVENTS = st.builds(
    TokenEvent,
    st.sampled_from(NAMES),
    st.none() | st.integers(0, 2**32),
    st.sampled_from(cast("list[FinishReason | None]", [None] * 9 + ["length"])),
    st.sampled_from([None, None, TokenLogprobs(-0.5, ((3, -0.5),))]),
    st.sampled_from([None, None, "jammed"]),
    st.just(None),
    st.integers(0, 2),
    st.sampled_from([0.0, 0.0, 0.25]),
    st.sampled_from([None, None, b"\0\1"]),
)


@given(st.lists(st.lists(EVENTS, max_size=8), max_size=6))
def test_what_is_read_is_what_was_written(turns: list[list[TokenEvent]]) -> None:
    writer = TurnWriter()
    known = {number: Known(name) for name, number in NUMBERS.items()}
    for name, number in NUMBERS.items():
        writer.begin(name, number)
    ended: set[str] = set()
    for events in turns:
        sent = []
        for event in events:  # the engine says nothing after an end
            if event.request_id not in ended:
                sent.append(event)
            if event.finish_reason is not None:
                ended.add(event.request_id)
        tokens, rest = writer.written(sent)
        message = msgspec.msgpack.decode(msgspec.msgpack.encode(Turn(tokens, rest)), type=Turn)
        read = []
        for event in read_turn(message.tokens, message.events, known):
            known[NUMBERS[event.request_id]].num_cached_tokens = event.num_cached_tokens
            read.append(event)
        assert read == sent


def test_a_token_is_two_integers_once_its_request_is_known() -> None:
    writer = TurnWriter()
    writer.begin("a", 7)
    first = TokenEvent("a", 5, num_cached_tokens=3, queue_seconds=0.5)
    assert writer.written([first]) == ([0, 0], [first])
    plain = replace(first, token_id=6, queue_seconds=0.0)
    assert writer.written([plain, plain]) == ([7, 6, 7, 6], [])
    assert writer.numbers_of(["a", "b"]) == [7]
    end = replace(plain, finish_reason="length")
    assert writer.written([end]) == ([0, 0], [end])
    assert writer.numbers_of(["a"]) == []


def test_tokens_of_a_request_that_is_gone_are_dropped() -> None:
    kept = TokenEvent("b", 9, "stop")
    assert list(read_turn([7, 6, 0, 0], [kept], {})) == [kept]


def test_a_turn_that_counts_wrongly_is_refused() -> None:
    for tokens in ([0, 0], [1]):
        with pytest.raises(ProtocolError):
            list(read_turn(tokens, [], {1: Known("a")}))


def test_what_a_front_does_not_take_now_goes_with_the_next_message() -> None:
    front, worker = socket.socketpair()
    with front, worker:
        worker.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        outbox = Outbox(worker)
        for number in range(3000):
            outbox.send(Turn([1, number]), wait=False)
        frames, seen = FrameReader(), list[int]()
        while len(seen) < 3000:
            # With room again, one more message takes the rest along.
            outbox.send(Turn([]), wait=False)
            for payload in frames.feed(front.recv(65536)):
                turn = news_of(payload)
                assert isinstance(turn, Turn)
                seen += turn.tokens[1:]
        assert seen == list(range(3000))
