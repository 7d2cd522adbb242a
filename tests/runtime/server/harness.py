"""A real server over a real engine, on an executor that knows its answers by position."""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import numpy as np
import numpy.typing as npt
from openai import OpenAI

from compile.model import Model
from runtime.engine.batch import Executor, StepBatch
from runtime.engine.engine import Engine
from runtime.engine.options import EngineOptions
from runtime.engine.request import Request
from runtime.engine.thread import EngineThread, Listener
from runtime.server.access import Access, Tls
from runtime.server.limits import Limits
from runtime.server.main import HttpServer
from runtime.server.registry import Registry
from runtime.service import GenerationService, usable_positions
from runtime.text.grammar.compiler import GrammarCompiler
from runtime.text.template import load_template
from runtime.text.tokenizer import Tokenizer, load_tokenizer
from tests.tiny import tiny_model, write_tokenizer
from tests.waiting import PATIENCE_SECONDS

MODEL = "tiny"
SCRIPT = 'The press stands in the corner. Café, 日本語, 🙂 and "oil"\u2028of last year: one, two. '


@cache
def tiny_text_model() -> Model:
    """A Model whose directory holds the tiny tokenizer and its chat template."""
    model = tiny_model()
    directory = Path(_directory().name)
    write_tokenizer(directory)
    return Model(
        directory, "huggingface", model.program, model.weights, model.config, directory, None
    )


@cache
def _directory() -> "TemporaryDirectory[str]":
    return TemporaryDirectory(prefix="coldpress-tests-")


@cache
def tiny_tokenizer() -> Tokenizer:
    return load_tokenizer(tiny_text_model())


class ScriptedExecutor:
    """After position p comes token `script[p % len(script)]`, whatever the context.

    hold: called before each step; may block or raise.
    """

    def __init__(
        self,
        script: Sequence[int] | None = None,
        *,
        num_pages: int = 256,
        page_size: int = 8,
        max_positions: int = 256,
        hold: Callable[[], object] = lambda: None,
    ) -> None:
        self.script = list(script or tiny_tokenizer().encode(SCRIPT))
        self.vocab_size = 384
        self.max_positions = max_positions
        self.page_size = page_size
        self.num_pages = num_pages
        self.hold = hold
        # Alternatives fall by id, so that the top list is known: no ties.
        self._base = (-np.arange(self.vocab_size) / 64 - 4).astype(np.float32)

    def step(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        self.hold()
        logits: npt.NDArray[np.float32] = np.tile(self._base, (len(batch.logit_rows), 1))
        for row, token in enumerate(batch.logit_rows):
            logits[row, self.script[int(batch.positions[token]) % len(self.script)]] = 20.0
        return logits

    def close(self) -> None: ...

    def answer(self, num_prompt_tokens: int, num_tokens: int) -> list[int]:
        """The oracle: what follows a prompt of that length."""
        first = num_prompt_tokens - 1
        return [self.script[p % len(self.script)] for p in range(first, first + num_tokens)]


class CountingThread(EngineThread):
    """Tells tests how many requests have been accepted so far."""

    num_accepted = 0

    def submit(self, request: Request, on_event: Listener, waited: float = 0.0) -> None:
        super().submit(request, on_event, waited)
        self.num_accepted += 1


@dataclass(frozen=True)
class Running:
    """A server that answers at `url`."""

    server: HttpServer
    service: GenerationService
    engine: Engine
    thread: CountingThread

    @property
    def url(self) -> str:
        return self.server.url

    def client(self) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)


def make_service(
    executor: Executor, *, max_waiting: int = 64, max_running: int = 16, **options: Any
) -> tuple[GenerationService, Engine, CountingThread]:
    """`options` are further ones of the engine."""
    engine = Engine(
        executor,
        EngineOptions(max_waiting=max_waiting, max_running=max_running, **options),
        check=True,
        grammars=GrammarCompiler(tiny_tokenizer, executor.vocab_size),
    )
    thread = CountingThread(engine)
    service = GenerationService(
        thread,
        tiny_tokenizer(),
        load_template(tiny_text_model()),
        MODEL,
        usable_positions(executor),
    )
    return service, engine, thread


@contextmanager
def listening(server: HttpServer) -> Iterator[None]:
    """In a thread; drained at the end."""
    ready = threading.Event()
    thread = threading.Thread(target=server.run, args=(lambda url: ready.set(),))
    thread.start()
    try:
        assert ready.wait(PATIENCE_SECONDS)
        yield
    finally:
        server.stop()
        thread.join(PATIENCE_SECONDS)
        assert not thread.is_alive()


@contextmanager
def serving(registry: Registry) -> Iterator[httpx.Client]:
    """A client of a server of several models."""
    server = HttpServer(registry, drain_seconds=2)
    with listening(server), httpx.Client(base_url=server.url, timeout=PATIENCE_SECONDS) as http:
        yield http


@contextmanager
def running(
    executor: Executor,
    *,
    limits: Limits | None = None,
    max_waiting: int = 64,
    max_running: int = 16,
    drain_seconds: float = 30.0,
    access: Access | None = None,
    tls: Tls | None = None,
    **options: Any,
) -> Iterator[Running]:
    """A server on a free port, in a thread; drained at the end. `options` are further ones of the
    engine."""
    service, engine, engine_thread = make_service(
        executor, max_waiting=max_waiting, max_running=max_running, **options
    )
    server = HttpServer(
        [service], limits=limits, access=access, tls=tls, drain_seconds=drain_seconds
    )
    with listening(server):
        yield Running(server, service, engine, engine_thread)
    assert not engine_thread.is_alive
