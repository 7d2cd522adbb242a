"""The engine on a thread of its own; every method here may be called from any thread."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from runtime.engine.constraint import Matcher
from runtime.engine.engine import Engine
from runtime.engine.request import Request, RequestError, TokenEvent
from runtime.engine.runner import ExecutorFailed
from runtime.engine.stats import EngineStats
from runtime.engine.turns import turn
from runtime.engine.validate import duplicate_request, queue_full

_log = logging.getLogger(__name__)

Listener = Callable[[TokenEvent], None]

_STOP_SECONDS = 10.0
"""How long `shutdown` waits for the step in flight after the drain time has passed."""


class EngineThread:
    """Owns an engine from now on and steps it while there is work; sleeps when there is none.

    Listeners run on the engine's thread and must return at once. Each accepted request gets
    exactly one event with a finish_reason, whatever happens, and that is its last one. Grammars
    are compiled on a thread aside, so that no other request waits for them.

    after_turn: called on the engine's thread after the events of each step have been delivered.
    """

    def __init__(
        self,
        engine: Engine,
        clock: Callable[[], float] = time.monotonic,
        after_turn: Callable[[], None] | None = None,
    ) -> None:
        self._engine = engine
        self._clock = clock
        self._after_turn = after_turn
        self._wake = threading.Condition()
        self._inbox: dict[str, Request] = {}
        self._compiling: dict[str, Request] = {}
        self._arrivals: dict[str, float] = {}
        """By the engine's clock, of those that it has not been handed yet."""
        self._matchers: dict[str, Matcher | None] = {}
        self._uncompiled: list[TokenEvent] = []
        self._compiler = ThreadPoolExecutor(1, "coldpress-grammars")
        self._aborts: set[str] = set()
        self._page_limit: int | None = None
        """Asked for, and not handed to the engine yet."""
        self._listeners: dict[str, Listener] = {}
        self._last_progress = clock()
        self._draining = False
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="coldpress-engine", daemon=True)
        self._thread.start()

    @property
    def last_progress(self) -> float:
        """When, on the clock, a step last ended or the first work after an idle time came in."""
        return self._last_progress

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def is_ready(self) -> bool:
        """Whether a request would be run now."""
        return self.is_alive and not self._draining

    def seconds_without_progress(self) -> float:
        """How long live requests have seen no step end; 0 when there are none."""
        with self._wake:
            return self._clock() - self._last_progress if self._listeners else 0.0

    def submit(self, request: Request, on_event: Listener, waited: float = 0.0) -> None:
        """Queue a request; RequestError as from `Engine.add`, or code "shutting_down". waited: how
        long it has been under way already, in seconds of the times that it may take."""
        self._engine.validate(request)
        with self._wake:
            if self._draining:
                raise RequestError("the server is shutting down", code="shutting_down")
            if request.request_id in self._listeners:
                raise duplicate_request(request.request_id)
            num_waiting = self._engine.num_waiting + self._num_outside
            if num_waiting >= self._engine.options.max_waiting:
                raise queue_full(
                    num_waiting,
                    self._engine.options.max_waiting,
                    self._engine.expected_wait(num_waiting),
                )
            if not self._listeners:
                self._last_progress = self._clock()
            self._listeners[request.request_id] = on_event
            self._arrivals[request.request_id] = self._engine.now() - waited
            if request.constraint is not None:
                self._compiling[request.request_id] = request
                self._compiler.submit(self._compile, request)
            else:
                self._inbox[request.request_id] = request
                self._wake.notify()

    def abort(self, request_id: str) -> None:
        """End a request soon; its listener gets the "abort". Unknown ids are ignored."""
        with self._wake:
            if request_id in self._listeners:
                self._aborts.add(request_id)
                self._wake.notify()

    def limit_pages(self, most: int) -> None:
        """See `Engine.limit_pages`; soon."""
        with self._wake:
            self._page_limit = most
            self._wake.notify()

    def stats(self) -> EngineStats:
        """Of this moment, perhaps amid a step; requests not yet handed over count as waiting."""
        with self._wake:
            stats = self._engine.stats
            return replace(stats, num_waiting=stats.num_waiting + self._num_outside)

    def shutdown(self, drain_seconds: float = 30.0) -> bool:
        """Take no more requests, let the live ones finish, then end the rest with an error event.

        Returns whether the thread has ended; the executor may be closed only then.
        """
        with self._wake:
            self._draining = True
            self._wake.notify()
        self._thread.join(drain_seconds)
        with self._wake:
            self._stopping = True
            self._wake.notify()
        self._thread.join(_STOP_SECONDS)
        return not self._thread.is_alive()

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._turn()
                self._last_progress = self._clock()
                if self._after_turn is not None:
                    self._after_turn()
        finally:
            with self._wake:
                self._draining = True
                live = tuple(self._listeners)
            self._compiler.shutdown(wait=False, cancel_futures=True)
            self._engine.reset()
            self._deliver_error(live, "The server stopped before the answer was complete.")

    @property
    def _num_outside(self) -> int:
        """Requests that the engine has not been handed yet."""
        return len(self._inbox) + len(self._compiling)

    def _compile(self, request: Request) -> None:
        """On the thread aside: the request may enter, or it ends, unless it was aborted by now."""
        matcher, error = None, None
        try:
            matcher = self._engine.matcher_of(request)
        except RequestError as refusal:
            error = str(refusal)
        except Exception as bug:
            _log.exception("a grammar could not be compiled")
            error = f"The constraint could not be compiled: {bug}"
        name = request.request_id
        with self._wake:
            if self._compiling.get(name) is not request:
                return
            del self._compiling[name]
            if error is None:
                self._matchers[name] = matcher
                self._inbox[name] = request
            else:
                self._uncompiled.append(TokenEvent(name, None, "error", error=error))
            self._wake.notify()

    def _wait_for_work(self) -> bool:
        """Sleep until there is some; False when it is time to end."""
        with self._wake:
            self._wake.wait_for(
                lambda: (
                    self._inbox
                    or self._aborts
                    or self._uncompiled
                    or self._page_limit is not None
                    or self._engine.has_work
                    or (self._draining and not self._compiling)
                    or self._stopping
                )
            )
            return not self._stopping and not (self._draining and not self._listeners)

    def _turn(self) -> None:
        """One step, with what came in before it; a failure ends requests, never the thread."""
        try:
            self._deliver(self._take_commands())
            self._deliver(self._engine.step())
        except ExecutorFailed as failure:
            _log.exception("an engine step failed and was rolled back")
            for request_id in failure.request_ids:
                self._engine.abort(request_id, "error")
            self._deliver_error(failure.request_ids, f"The model could not run: {failure}")
        except Exception as bug:
            _log.exception("the engine failed; every live request ends and it starts afresh")
            self._engine.reset()
            with self._wake:
                started = tuple(
                    name
                    for name in self._listeners
                    if name not in self._inbox and name not in self._compiling
                )
            self._deliver_error(started, f"The engine failed: {bug}")

    def _take_commands(self) -> list[TokenEvent]:
        """Hand new requests to the engine while its queue has room; carry out the aborts."""
        with self._wake:
            aborts, self._aborts = self._aborts, set()
            limit, self._page_limit = self._page_limit, None
            never_started = [name for name in aborts if self._drop_unstarted(name)]
            events, self._uncompiled = self._uncompiled, []
            room = self._engine.options.max_waiting
            while self._inbox and self._engine.num_waiting < room:
                request = self._inbox.pop(next(iter(self._inbox)))
                name = request.request_id
                matcher, arrived_at = self._matchers.pop(name, None), self._arrivals.pop(name)
                self._engine.add(request, matcher, arrived_at)
        if limit is not None:
            self._engine.limit_pages(limit)
        events += [TokenEvent(name, None, "abort") for name in never_started]
        return events + [event for name in aborts if (event := self._engine.abort(name))]

    def _drop_unstarted(self, name: str) -> bool:
        self._matchers.pop(name, None)
        return any(box.pop(name, None) is not None for box in (self._inbox, self._compiling))

    def _deliver_error(self, request_ids: tuple[str, ...], error: str) -> None:
        self._deliver([TokenEvent(name, None, "error", error=error) for name in request_ids])

    def _deliver(self, events: list[TokenEvent]) -> None:
        """Call listeners outside the lock; one that raises loses its request, nobody else's."""
        if not events:
            return
        with self._wake:
            news = [(self._listeners.get(event.request_id), event) for event in events]
            for event in events:
                if event.finish_reason is not None:
                    self._forget(event.request_id)
        lost: dict[str, Listener] = {}
        with turn():
            for listener, event in news:
                if listener is None or event.request_id in lost:
                    continue
                try:
                    listener(event)
                except Exception:
                    _log.exception("a listener failed; its request is aborted")
                    lost[event.request_id] = listener
        for name, listener in lost.items():
            with self._wake:
                is_live = self._listeners.get(name) is listener
                if is_live:
                    self._forget(name)
            if is_live:
                self._engine.abort(name)

    def _forget(self, request_id: str) -> None:
        """The id is free again; an abort still on its way must not meet its next owner."""
        self._listeners.pop(request_id, None)
        self._arrivals.pop(request_id, None)
        self._aborts.discard(request_id)
