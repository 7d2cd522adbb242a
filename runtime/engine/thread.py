"""The engine on a thread of its own; every method here may be called from any thread."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from runtime.engine.engine import Engine, ExecutorFailed
from runtime.engine.request import FinishReason, Request, RequestError, TokenEvent
from runtime.engine.stats import EngineStats
from runtime.engine.validate import duplicate_request, queue_full

_log = logging.getLogger(__name__)

Listener = Callable[[TokenEvent], None]

_STOP_SECONDS = 10.0
"""How long `shutdown` waits for the step in flight after the drain time has passed."""


class EngineThread:
    """Owns an engine from now on and steps it while there is work; sleeps when there is none.

    Listeners run on the engine's thread and must return at once. Each accepted request gets
    exactly one event with a finish_reason, whatever happens, and that is its last one.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._wake = threading.Condition()
        self._inbox: dict[str, Request] = {}
        self._aborts: list[str] = []
        self._listeners: dict[str, Listener] = {}
        self._stats = engine.stats
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

    def seconds_without_progress(self) -> float:
        """How long live requests have seen no step end; 0 when there are none."""
        with self._wake:
            return self._clock() - self._last_progress if self._listeners else 0.0

    def submit(self, request: Request, on_event: Listener) -> None:
        """Queue a request; RequestError as from `Engine.add`, or code "shutting_down"."""
        self._engine.validate(request)
        with self._wake:
            if self._draining:
                raise RequestError("the server is shutting down", code="shutting_down")
            if request.request_id in self._listeners:
                raise duplicate_request(request.request_id)
            num_waiting = self._stats.num_waiting + len(self._inbox)
            if num_waiting >= self._engine.max_waiting:
                raise queue_full(num_waiting, self._engine.max_waiting)
            if not self._listeners:
                self._last_progress = self._clock()
            self._listeners[request.request_id] = on_event
            self._inbox[request.request_id] = request
            self._wake.notify()

    def abort(self, request_id: str) -> None:
        """End a request soon; its listener gets the "abort". Unknown ids are ignored."""
        with self._wake:
            self._aborts.append(request_id)
            self._wake.notify()

    def stats(self) -> EngineStats:
        """As of the end of the last step; requests not yet handed over count as waiting."""
        with self._wake:
            num_waiting = self._stats.num_waiting + len(self._inbox)
            return replace(self._stats, num_waiting=num_waiting)

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
            while self._take_commands():
                self._step()
                with self._wake:
                    self._stats = self._engine.stats
                    self._last_progress = self._clock()
        finally:
            with self._wake:
                self._draining = True
                live = tuple(self._listeners)
            self._fail(live, "The server stopped before the answer was complete.")
            with self._wake:
                self._stats = self._engine.stats

    def _take_commands(self) -> bool:
        """Wait for work, hand it to the engine; False when it is time to end."""
        with self._wake:
            self._wake.wait_for(
                lambda: self._inbox or self._aborts or self._engine.has_work or self._draining
            )
            if self._stopping or (self._draining and not self._listeners):
                return False
            aborts, self._aborts = self._aborts, []
            never_started = [name for name in aborts if self._inbox.pop(name, None) is not None]
            while self._inbox and self._engine.num_waiting < self._engine.max_waiting:
                self._engine.add(self._inbox.pop(next(iter(self._inbox))))
            self._stats = self._engine.stats
        events = [TokenEvent(name, None, "abort") for name in never_started]
        events += [event for name in aborts if (event := self._engine.abort(name)) is not None]
        self._deliver(events)
        return True

    def _step(self) -> None:
        try:
            events = self._engine.step()
        except ExecutorFailed as failure:
            _log.exception("an engine step failed and was rolled back")
            self._fail(failure.request_ids, f"The model could not run this step: {failure}")
        except Exception as bug:
            _log.exception("the engine failed; every live request ends and it starts afresh")
            self._engine.reset()
            with self._wake:
                started = tuple(name for name in self._listeners if name not in self._inbox)
            self._fail(started, f"The engine failed: {bug}")
        else:
            self._deliver(events)

    def _fail(self, request_ids: tuple[str, ...], error: str) -> None:
        reason: FinishReason = "error"
        for request_id in request_ids:
            self._engine.abort(request_id, reason)
        with self._wake:
            for request_id in request_ids:
                self._inbox.pop(request_id, None)
        self._deliver([TokenEvent(name, None, reason, error=error) for name in request_ids])

    def _deliver(self, events: list[TokenEvent]) -> None:
        """Call listeners outside the lock; one that raises loses its request, nobody else's."""
        for event in events:
            with self._wake:
                listener = self._listeners.get(event.request_id)
                if event.finish_reason is not None:
                    self._listeners.pop(event.request_id, None)
            if listener is None:
                continue
            try:
                listener(event)
            except Exception:
                _log.exception("a listener failed; its request is aborted")
                with self._wake:
                    self._listeners.pop(event.request_id, None)
                self._engine.abort(event.request_id)
