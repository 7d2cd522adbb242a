"""The requests that the front has accepted, and which of them a worker is given next."""

from collections import deque
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass

from runtime.engine.request import Request, TokenEvent
from runtime.engine.stats import EngineStats
from runtime.worker.ledger import Ledger
from runtime.worker.messages import Submit, Turn
from runtime.worker.news import read_turn
from runtime.worker.quarantine import Quarantine

MAX_LOSSES = 3
"""Workers that may die while they have a request, before it is given up whoever is to blame."""
CRASHED = "The model's process ended before the answer was complete."
GUILTY = "The model's process ended more than once over this request; it is not run again."

Listener = Callable[[TokenEvent], None]
Delivery = tuple[Listener, TokenEvent]


@dataclass(eq=False, slots=True)
class Live:
    """number: the request's name in the flight record of the worker that has it, None while it
    waits here. spoke: its listener has heard of it. aborted: the worker was told to end it.
    losses: workers that died while they had it. num_cached_tokens: as the worker last said."""

    request: Request
    listener: Listener
    accepted_at: float
    number: int | None = None
    spoke: bool = False
    aborted: bool = False
    losses: int = 0
    num_cached_tokens: int = 0

    @property
    def request_id(self) -> str:
        return self.request.request_id


class Roster:
    """Pure bookkeeping; the lock is its owner's.

    After a worker's death its requests are told apart: what has been heard of ends with an error,
    since nobody can take back what was said; the rest is run again. Those that shared the fatal
    step are suspects: the next worker gets them one at a time, each until its first word, and
    nothing else meanwhile, so that the one to blame takes nobody with it a second time.
    """

    def __init__(self, max_waiting: int) -> None:
        self.quarantine = Quarantine()
        self._ledger = Ledger(max_waiting)
        self._live: dict[str, Live] = {}
        self._at_worker: dict[int, Live] = {}
        """Those that it has, by number."""
        self._suspects: deque[Live] = deque()
        self._on_trial: Live | None = None
        self._last_number = 0

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._live

    def __len__(self) -> int:
        return len(self._live)

    def add(self, request: Request, listener: Listener, now: float) -> None:
        self._ledger.accept()
        self._live[request.request_id] = Live(request, listener, now)

    def num_waiting(self, num_in_step: int) -> int:
        """Accepted requests that no step is about, `num_in_step` being in the one that runs."""
        return len(self._live) - max(num_in_step, self._ledger.num_running)

    def stats(self) -> EngineStats:
        return self._ledger.stats(len(self._live))

    def restart(self) -> None:
        """Another worker was started."""
        self._ledger.restart()

    def hand_over(self, now: float) -> Iterator[Submit]:
        """What the worker is to be given now, with the numbers that name it there."""
        for live in self._next():
            self._last_number += 1
            live.number = self._last_number
            self._at_worker[live.number] = live
            yield Submit(live.number, live.request, max(0.0, now - live.accepted_at))

    def mute(self, request_id: str) -> None:
        """Its listener is not to be called again."""
        live = self._live.get(request_id)
        if live is not None:
            live.listener = lambda event: None

    def abort(self, request_id: str) -> tuple[bool, list[Delivery]]:
        """Whether the worker is to be told, and the end of a request that it does not have."""
        live = self._live.get(request_id)
        if live is None:
            return False, []
        live.aborted = True
        if live.number is not None:
            return True, []
        return False, [self._end(live, TokenEvent(request_id, None, "abort"))]

    def turn(self, turn: Turn) -> list[Delivery]:
        """What a step gave, with those who want to hear it; ProtocolError for what is no turn."""
        if turn.stats is not None:
            self._ledger.turn(turn.stats)
        events = read_turn(turn.tokens, turn.events, self._at_worker)
        return [delivery for event in events if (delivery := self._hear(event)) is not None]

    def refused(self, request_id: str, message: str) -> list[Delivery]:
        """The worker does not take a request."""
        event = TokenEvent(request_id, None, "error", error=message)
        delivery = self._hear(event)
        return [] if delivery is None else [delivery]

    def lost(self, in_flight: Collection[int]) -> list[Delivery]:
        """The worker died, amid a step over the requests of these numbers."""
        self._ledger.lost()
        self._on_trial = None
        had, self._at_worker = self._at_worker, {}
        ends = [self._after_death(live, number in in_flight) for number, live in had.items()]
        return [end for end in ends if end is not None]

    def end_all(self, error: str) -> list[Delivery]:
        return [
            self._end(live, TokenEvent(live.request.request_id, None, "error", error=error))
            for live in tuple(self._live.values())
        ]

    def _next(self) -> list[Live]:
        if self._on_trial is not None or len(self._at_worker) == len(self._live):
            return []
        while self._suspects:
            suspect = self._suspects.popleft()
            if suspect.request.request_id in self._live:
                self._on_trial = suspect
                return [suspect]
        return [live for live in self._live.values() if live.number is None]

    def _hear(self, event: TokenEvent) -> Delivery | None:
        live = self._live.get(event.request_id)
        if live is None:
            return None
        live.spoke = True
        live.num_cached_tokens = event.num_cached_tokens
        if live is self._on_trial:
            self._on_trial = None
        return (live.listener, event) if event.finish_reason is None else self._end(live, event)

    def _end(self, live: Live, event: TokenEvent) -> Delivery:
        assert event.finish_reason is not None
        del self._live[event.request_id]
        if live.number is not None:
            self._at_worker.pop(live.number, None)
        self._ledger.finish(event.finish_reason)
        if event.finish_reason in ("stop", "length"):
            self.quarantine.clear(live.request)
        if live is self._on_trial:
            self._on_trial = None
        return live.listener, event

    def _after_death(self, live: Live, in_step: bool) -> Delivery | None:
        live.number = None
        live.losses += 1
        request_id = live.request.request_id
        guilty = in_step and self.quarantine.blame(live.request)
        if live.aborted:
            return self._end(live, TokenEvent(request_id, None, "abort"))
        if guilty or live.spoke or live.losses >= MAX_LOSSES:
            error = GUILTY if guilty else CRASHED
            return self._end(live, TokenEvent(request_id, None, "error", error=error))
        if in_step:
            self._suspects.append(live)
        return None
