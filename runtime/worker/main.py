"""The worker: loads one model, then runs what the front submits, until the front is gone."""

import gc
import logging
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NoReturn

from runtime.engine.batch import GivesHidden
from runtime.engine.engine import Engine
from runtime.engine.options import EngineOptions
from runtime.engine.request import RequestError, TokenEvent
from runtime.engine.thread import EngineThread
from runtime.machine import end_first
from runtime.worker.failures import described
from runtime.worker.flight import FlightRecord
from runtime.worker.memory_watch import watch_memory
from runtime.worker.messages import (
    FrameReader,
    Load,
    Loaded,
    Refused,
    Submit,
    ToWorker,
    Turn,
    command_of,
)
from runtime.worker.news import TurnWriter
from runtime.worker.opening import Opened, grammars_of, import_ahead, load_model
from runtime.worker.outbox import Outbox
from runtime.worker.spec import ModelSpec, WorkerFacts

_log = logging.getLogger(__name__)
_READ_BYTES = 64 * 1024
_STATS_SECONDS = 0.1
"""Counters are told no more often than that while requests only gain tokens."""
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

OpenExecutor = Callable[[ModelSpec], Opened]


def run(socket_fd: int, record_fd: int, open_executor: OpenExecutor | None = None) -> NoReturn:
    """Serve the front at the other end of `socket_fd`; never returns.

    Only the front ends a worker, by closing the socket: a signal to the whole process group (a
    terminal's Ctrl-C, a service manager's stop) must leave it able to finish what it is at.
    """
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    end_first()
    if open_executor is None:
        import_ahead()
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
        self._front = Outbox(front)
        self._spec = spec
        self._record = FlightRecord(record_fd, spec.engine.max_running)
        self._writer = TurnWriter()
        self._events: list[TokenEvent] = []
        self._engine: Engine | None = None
        self._thread: EngineThread | None = None
        self._told_stats = 0.0

    def load(self, open_executor: OpenExecutor) -> bool:
        """Tell the front of the model, or why there is none; whether there is one."""
        try:
            opened = open_executor(self._spec)
            executor = opened.executor
            grammars = grammars_of(self._spec, executor.vocab_size)
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
            self._front.send(described(error))
            return False
        self._engine = engine
        # The collector need not go through what stays for good, again and again amid steps.
        gc.freeze()
        self._thread = EngineThread(engine, after_turn=self._after_turn)
        watch_memory(self._spec, executor, self._thread)
        self._front.send(Loaded(_facts_of(opened)))
        self._front.send(Turn(stats=self._thread.stats()))
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
        self._writer.begin(request.request_id, command.number)
        try:
            self._thread.submit(request, self._events.append, command.waited)
        except RequestError as error:
            self._writer.forget(request.request_id)
            self._front.send(Refused(request.request_id, str(error)))

    def _options(self) -> EngineOptions:
        """The front keeps the bound of the queue, which it cannot know to the last request here."""
        asked = self._spec.engine
        return replace(asked, max_waiting=asked.max_waiting + asked.max_running)

    def _before_step(self, request_ids: Sequence[str]) -> None:
        self._record.write(self._writer.numbers_of(request_ids))

    def _after_turn(self) -> None:
        """One frame for the whole step: the front wakes once."""
        self._record.clear()
        tokens, events = self._writer.written(self._events)
        self._events.clear()
        assert self._thread is not None and self._engine is not None
        now, is_last, stats = time.monotonic(), not self._engine.has_work, None
        if events or is_last or now - self._told_stats > _STATS_SECONDS:
            self._told_stats, stats = now, self._thread.stats()
        if tokens or stats is not None:
            self._front.send(Turn(tokens, events, stats), wait=is_last)


def _commands(front: socket.socket) -> Iterator[ToWorker]:
    frames = FrameReader()
    # A thread that waits in recv itself is woken by each message that the other side takes.
    waiting = select.poll()
    waiting.register(front, select.POLLIN)
    while waiting.poll() and (data := front.recv(_READ_BYTES)):
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
        memory="" if opened.budget is None else opened.budget.sentence(),
        budget={} if opened.budget is None else opened.budget.as_object(),
    )
