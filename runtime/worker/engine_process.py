"""The engine behind a process boundary: what `EngineThread` is to one in this process."""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from runtime.engine.request import Request, RequestError
from runtime.engine.stats import EngineStats
from runtime.engine.turns import turn
from runtime.engine.validate import check_request, duplicate_request, queue_full
from runtime.worker.failures import death_in_load, exception_of, how_it_ended
from runtime.worker.messages import (
    Abort,
    Loaded,
    LoadFailed,
    ProtocolError,
    Refused,
    ToFront,
    Turn,
)
from runtime.worker.process import COMMAND, WorkerProcess
from runtime.worker.roster import CRASHED, Delivery, Listener, Roster
from runtime.worker.spec import ModelSpec, WorkerFacts

_log = logging.getLogger(__name__)

STALL_SECONDS = 120.0
"""A worker that has had work for so long without ending a step is ended and started anew."""
STOPPED = "The server stopped before the answer was complete."
_LOOK_SECONDS = 1.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 30.0
_HEALTHY_SECONDS = 60.0
"""A worker that lived so long was not broken from the start: the next pause is short again."""
_STOP_SECONDS = 10.0


class EngineProcess:
    """Implements `EngineHandle` over a worker that it starts, watches and starts anew.

    Every method may be called from any thread, and returns at once but for `wait_ready` and
    `shutdown`. Listeners run on one thread, all events of a step in a row (or, for the end of a
    request that waits here, on the thread that aborts), and must return at once. Each accepted
    request gets exactly one event with a finish_reason, whatever happens, and that is its last.
    """

    def __init__(
        self,
        spec: ModelSpec,
        process: WorkerProcess | None = None,
        *,
        command: Sequence[str] = COMMAND,
        stall_seconds: float = STALL_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.spec = spec
        self._command = command
        self._stall_seconds = stall_seconds
        self._clock = clock
        self._changed = threading.Condition()
        self._roster = Roster(spec.engine.max_waiting)
        self._facts: WorkerFacts | None = None
        self._failure: Exception | None = None
        self._serving = self._draining = self._stopping = False
        self._last_progress = clock()
        self._worker = process or WorkerProcess(spec.engine.max_running, command)
        self._worker.load(spec)
        self._thread = threading.Thread(
            target=self._run, name=f"coldpress-worker-{spec.name}", daemon=True
        )
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether there is, or soon will be, a worker that answers."""
        return self._thread.is_alive()

    @property
    def is_ready(self) -> bool:
        """Whether a request would be run now."""
        return self._serving and not self._draining

    @property
    def worker_pid(self) -> int:
        """The process that runs, or that ran last."""
        return self._worker.pid

    def wait_ready(self, seconds: float | None = None) -> WorkerFacts:
        """Wait for the model to be loaded.

        Raises what loading it raised, with the same sentence; WorkerDied if its process ended
        instead; TimeoutError after `seconds`.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._facts or self._failure, seconds)
            if self._facts is not None:
                return self._facts
            raise self._failure or TimeoutError(f"{self.spec.path} took more than {seconds} s")

    def seconds_without_progress(self) -> float:
        """How long live requests have seen no step end, or how long a worker that was lost has
        not come back; 0 when there is nothing to do."""
        with self._changed:
            idle = not self._roster and (self._serving or self._facts is None)
            return 0.0 if idle else self._clock() - self._last_progress

    def submit(self, request: Request, on_event: Listener) -> None:
        """Queue a request. RequestError as from `EngineThread.submit`; with code "quarantined" for
        one that has killed workers, with "model_unavailable" where no worker can be started."""
        with self._changed:
            self._check(request)
            if not self._roster and self._serving:
                self._last_progress = self._clock()
            self._roster.add(request, on_event, self._clock())
            self._hand_over()

    def abort(self, request_id: str) -> None:
        """End a request soon; its listener gets the "abort". Unknown ids are ignored."""
        with self._changed:
            tell, ended = self._roster.abort(request_id)
            if tell:
                self._worker.link.send(Abort(request_id))
            self._changed.notify_all()
        self._deliver(ended)

    def stats(self) -> EngineStats:
        """As of the last end of a request, or a tenth of a second ago; counters go on over the
        lives of workers."""
        with self._changed:
            return self._roster.stats()

    def shutdown(self, drain_seconds: float = 30.0) -> bool:
        """Take no more requests, let the live ones finish, then end the rest with an error event
        and the worker with them. Returns whether that is done."""
        with self._changed:
            self._draining = True
            self._changed.wait_for(lambda: not self._roster or self._stopping, drain_seconds)
            self._stopping = True
            self._changed.notify_all()
            self._worker.link.hang_up()
        self._thread.join(_STOP_SECONDS)
        return not self._thread.is_alive()

    def _check(self, request: Request) -> None:
        if self._facts is None or self._failure is not None:
            raise RequestError(
                f"the model '{self.spec.name}' is not loaded", code="model_unavailable"
            )
        if self._draining:
            raise RequestError("the server is shutting down", code="shutting_down")
        facts, options = self._facts, self.spec.engine
        check_request(
            request,
            vocab_size=facts.vocab_size,
            max_positions=facts.max_positions,
            pool_tokens=facts.pool_tokens,
            gives_hidden=facts.gives_hidden,
        )
        self._roster.quarantine.check(request)
        if request.request_id in self._roster:
            raise duplicate_request(request.request_id)
        num_waiting = self._roster.num_waiting(len(self._worker.in_flight()))
        if num_waiting >= options.max_waiting:
            wait = self._roster.stats().expected_wait_seconds
            raise queue_full(num_waiting, options.max_waiting, wait)

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        try:
            while True:
                started = self._clock()
                self._listen()
                if not self._bury():
                    return
                if self._clock() - started > _HEALTHY_SECONDS:
                    pause = _FIRST_PAUSE
                if not self._start_anew(pause):
                    return
                pause = min(2 * pause, _LONGEST_PAUSE)
        finally:
            with self._changed:
                self._draining, self._serving = True, False
                ended = self._roster.end_all(STOPPED)
                self._changed.notify_all()
            self._deliver(ended)
            self._worker.kill()
            self._worker.reap()
            with self._changed:
                self._worker.close()

    def _listen(self) -> None:
        """Hear the worker out, until it ends or talks nonsense."""
        try:
            for message in self._worker.link.news(_LOOK_SECONDS, self._look_for_life):
                self._hear(message)
        except ProtocolError:
            _log.exception("the worker of '%s' is ended", self.spec.name)
            self._worker.kill()

    def _look_for_life(self) -> None:
        if self._serving and self.seconds_without_progress() > self._stall_seconds:
            _log.error("'%s' made no progress; its process is ended", self.spec.name)
            self._worker.kill()

    def _hear(self, message: ToFront) -> None:
        news: list[Delivery] = []
        with self._changed:
            self._last_progress = self._clock()
            if isinstance(message, Turn):
                news = self._roster.turn(message)
            elif isinstance(message, Loaded):
                self._facts, self._failure, self._serving = message.facts, None, True
            elif isinstance(message, LoadFailed):
                self._failure = exception_of(message, self.spec)
            elif isinstance(message, Refused):
                news = self._roster.refused(message.request_id, message.message)
            self._hand_over()
            self._changed.notify_all()
        self._deliver(news)

    def _bury(self) -> bool:
        """The worker has ended: tell those whom it concerns. Whether there is to be another."""
        exit_code = self._worker.reap()
        with self._changed:
            was_serving, self._serving = self._serving, False
            if self._facts is None:
                self._failure = self._failure or death_in_load(self.spec, exit_code)
                self._changed.notify_all()
                return False
            if self._stopping:
                return False
            if not self._roster:
                self._last_progress = self._clock()
            ended = self._roster.lost(self._worker.in_flight())
            if not was_serving:
                self._failure = self._failure or death_in_load(self.spec, exit_code)
                ended += self._roster.end_all(CRASHED)
            self._changed.notify_all()
        _log.error("the process of '%s' %s", self.spec.name, how_it_ended(exit_code))
        self._deliver(ended)
        return True

    def _start_anew(self, pause: float) -> bool:
        """Another worker after a pause; False if we are to stop instead."""
        with self._changed:
            if self._changed.wait_for(lambda: self._stopping, pause):
                return False
            self._worker.close()
            self._roster.restart()
            self._worker = WorkerProcess(self.spec.engine.max_running, self._command)
            self._worker.load(self.spec)
            return True

    def _hand_over(self) -> None:
        if self._serving:
            for message in self._roster.hand_over(self._clock()):
                self._worker.link.send(message)

    def _deliver(self, news: Iterable[Delivery]) -> None:
        """Outside the lock; a listener that raises loses its request, nobody else's."""
        with turn():
            for listener, event in news:
                try:
                    listener(event)
                except Exception:
                    _log.exception("a listener failed; its request is aborted")
                    with self._changed:
                        self._roster.mute(event.request_id)
                    self.abort(event.request_id)


def start_worker(
    spec: ModelSpec,
    process: WorkerProcess | None = None,
    *,
    stall_seconds: float = STALL_SECONDS,
) -> EngineProcess:
    """Begin to load a model in a process of its own; returns at once, see `wait_ready`. process:
    one that was started ahead, for as many running requests."""
    return EngineProcess(spec, process, stall_seconds=stall_seconds)
