"""The worker: loads one model, then runs what the front submits, until the front is gone."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NoReturn

from runtime.engine.batch import GivesHidden
from runtime.engine.engine import Engine
from runtime.engine.options import EngineOptions
from runtime.engine.request import RequestError, TokenEvent
from runtime.engine.thread import EngineThread
from runtime.worker.failures import described
from runtime.worker.flight import FlightRecord
from runtime.worker.messages import (
    FrameReader,
    Load,
    Loaded,
    Refused,
    Submit,
    ToFront,
    ToWorker,
    Turn,
    command_of,
    frame_of,
)
from runtime.worker.opening import IdleGrammars, Opened, load_model
from runtime.worker.spec import ModelSpec, WorkerFacts

_log = logging.getLogger(__name__)
_READ_BYTES = 256 * 1024
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

OpenExecutor = Callable[[ModelSpec], Opened]


def run(socket_fd: int, record_fd: int, open_executor: OpenExecutor | None = None) -> NoReturn:
    """Serve the front at the other end of `socket_fd`; never returns.

    Only the front ends a worker, by closing the socket: a signal to the whole process group (a
    terminal's Ctrl-C, a service manager's stop) must leave it able to finish what it is at.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    front = socket.socket(fileno=socket_fd)
    commands = _commands(front)
    load = next(commands, None)
    if isinstance(load, Load):
        worker = _Worker(front, record_fd, load.spec)
        # From now on, so that a front that leaves meanwhile is noticed.
        threading.Thread(target=worker.obey, args=(commands,), daemon=True).start()
        if worker.load(open_executor or load_model):
            threading.Event().wait()
    os._exit(1)


class _Worker:
    """`obey` runs on a thread that does nothing else, so that the front never waits for a step."""

    def __init__(self, front: socket.socket, record_fd: int, spec: ModelSpec) -> None:
        self._front = front
        self._spec = spec
        self._record = FlightRecord(record_fd, spec.engine.max_running)
        self._numbers: dict[str, int] = {}
        self._events: list[TokenEvent] = []
        self._sending = threading.Lock()
        self._thread: EngineThread | None = None

    def load(self, open_executor: OpenExecutor) -> bool:
        """Tell the front of the model, or why there is none; whether there is one."""
        try:
            opened = open_executor(self._spec)
            executor = opened.executor
            grammars = IdleGrammars(self._spec, executor.vocab_size)
            options = self._options()
            engine = Engine(
                executor,
                options,
                grammars=grammars,
                on_step=self._before_step,
                draft_executor=opened.draft,
            )
        except Exception as error:
            _log.debug("the model cannot be loaded", exc_info=True)
            self._send(described(error))
            return False
        self._thread = EngineThread(engine, after_turn=self._after_turn)
        grammars.begin(lambda: not engine.has_work)
        self._send(Loaded(_facts_of(opened)))
        self._send(Turn([], self._thread.stats()))
        return True

    def obey(self, commands: Iterator[ToWorker]) -> None:
        """Carry out what the front says until it closes the socket; then end the process."""
        try:
            for command in commands:
                self._carry_out(command)
        except Exception:
            _log.exception("the worker cannot follow the front")
            os._exit(1)
        os._exit(0)

    def _carry_out(self, command: ToWorker) -> None:
        assert self._thread is not None, "a request came before the model was loaded"
        if not isinstance(command, Submit):
            assert not isinstance(command, Load), "a worker loads one model in its life"
            self._thread.abort(command.request_id)
            return
        request = command.request
        self._numbers[request.request_id] = command.number
        try:
            self._thread.submit(request, self._events.append)
        except RequestError as error:
            del self._numbers[request.request_id]
            self._send(Refused(request.request_id, str(error)))

    def _options(self) -> EngineOptions:
        """The front keeps the bound of the queue, which it cannot know to the last request here."""
        asked = self._spec.engine
        return replace(asked, max_waiting=asked.max_waiting + asked.max_running)

    def _before_step(self, request_ids: Sequence[str]) -> None:
        self._record.write([self._numbers[name] for name in request_ids if name in self._numbers])

    def _after_turn(self) -> None:
        """One frame for the whole step: the front wakes once."""
        self._record.clear()
        events, self._events[:] = self._events.copy(), ()
        for event in events:
            if event.finish_reason is not None:
                self._numbers.pop(event.request_id, None)
        assert self._thread is not None
        self._send(Turn(events, self._thread.stats()))

    def _send(self, message: ToFront) -> None:
        with self._sending:
            self._front.sendall(frame_of(message))


def _commands(front: socket.socket) -> Iterator[ToWorker]:
    frames = FrameReader()
    while data := front.recv(_READ_BYTES):
        yield from map(command_of, frames.feed(data))


def _facts_of(opened: Opened) -> WorkerFacts:
    executor = opened.executor
    return WorkerFacts(
        pid=os.getpid(),
        vocab_size=executor.vocab_size,
        max_positions=executor.max_positions,
        page_size=executor.page_size,
        num_pages=executor.num_pages,
        gives_hidden=isinstance(executor, GivesHidden),
        weight_bytes=executor.weight_bytes,
        pool_bytes=getattr(executor, "cache_bytes", 0),
        memory=opened.memory,
    )
