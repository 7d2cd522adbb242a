"""What a step gave as a worker writes it down and the front reads it: two integers for a token."""

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from runtime.engine.request import TokenEvent
from runtime.worker.messages import ProtocolError

_SPELLED_OUT = 0


class TurnWriter:
    """The worker's end; knows the number of each live request. For one thread but `begin`."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._cached: dict[str, int] = {}
        """Cached tokens that the front has been told of, by request that it has heard of."""

    def begin(self, request_id: str, number: int) -> None:
        self._numbers[request_id] = number

    def forget(self, request_id: str) -> None:
        self._numbers.pop(request_id, None)
        self._cached.pop(request_id, None)

    def numbers_of(self, request_ids: Iterable[str]) -> list[int]:
        """Of those that are live."""
        return [self._numbers[name] for name in request_ids if name in self._numbers]

    def written(self, events: Iterable[TokenEvent]) -> tuple[list[int], list[TokenEvent]]:
        """`tokens` and `events` of a Turn; requests that end with it are forgotten."""
        tokens: list[int] = []
        rest: list[TokenEvent] = []
        for event in events:
            name, token = event.request_id, event.token_id
            if token is not None and self._cached.get(name) == event.num_cached_tokens:
                number = self._numbers.get(name)
                if number is not None and _is_plain(event):
                    tokens += (number, token)
                    continue
            tokens += (_SPELLED_OUT, 0)
            rest.append(event)
            self._cached[name] = event.num_cached_tokens
            if event.finish_reason is not None:
                self.forget(name)
        return tokens, rest


class Known(Protocol):
    """What the front knows of a live request."""

    @property
    def request_id(self) -> str: ...

    num_cached_tokens: int


def read_turn(
    tokens: list[int], events: Iterable[TokenEvent], known: Mapping[int, Known]
) -> Iterator[TokenEvent]:
    """The events in the order in which they were written; those of requests that are not `known`
    any more are left out, if they were written as numbers. ProtocolError for what is no turn."""
    rest = iter(events)
    pairs = iter(tokens)
    for number in pairs:
        token = next(pairs, None)
        if number != _SPELLED_OUT and token is not None:
            request = known.get(number)
            if request is not None:
                yield TokenEvent(
                    request.request_id, token, num_cached_tokens=request.num_cached_tokens
                )
            continue
        event = next(rest, None)
        if event is None:
            raise ProtocolError("the worker counts more events than it tells")
        yield event


def _is_plain(event: TokenEvent) -> bool:
    """A token and nothing else."""
    return (
        event.finish_reason is None
        and event.logprobs is None
        and event.prompt_logprobs is None
        and event.error is None
        and event.embedding is None
        and not event.queue_seconds
    )
