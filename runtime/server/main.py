"""Running the app: bind, say when ready, drain on a signal."""

import contextlib
import signal
import socket
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from types import FrameType

import uvicorn

from runtime.server.access import Access, Tls
from runtime.server.address import bound, listen
from runtime.server.app import create_app
from runtime.server.connections import MAX_HEADER_BYTES, BoundedHttp
from runtime.server.limits import Limits
from runtime.server.registry import Registry
from runtime.service import GenerationService

_AFTER_DRAIN_SECONDS = 15
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class HttpServer:
    """A server that can be connected to at once; `run` answers until a signal or `stop`.

    at: from `bound`, where the address was taken before. Raises InputError if it cannot be had.
    """

    def __init__(
        self,
        models: Registry | Sequence[GenerationService],
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        limits: Limits | None = None,
        access: Access | None = None,
        tls: Tls | None = None,
        drain_seconds: float = 30.0,
        metrics_compat: Collection[str] = (),
        at: socket.socket | None = None,
    ) -> None:
        self._registry = models if isinstance(models, Registry) else Registry.of(models)
        self._drain_seconds = drain_seconds
        self._socket = bound(host, port) if at is None else at
        listen(self._socket)
        self.host, self.port = host, int(self._socket.getsockname()[1])
        self.app = create_app(self._registry, limits, access, metrics_compat)
        config = uvicorn.Config(
            self.app,
            host=host,
            port=self.port,
            http=_protocol(limits or Limits()),
            ws="none",
            lifespan="off",
            log_level="warning",
            access_log=False,
            server_header=False,
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            timeout_graceful_shutdown=int(drain_seconds) + _AFTER_DRAIN_SECONDS,
            ssl_certfile=None if tls is None else tls.certificate,
            ssl_keyfile=None if tls is None else tls.key,
        )
        self._scheme = "http" if tls is None else "https"
        self._server = _DrainingServer(
            config, self._start_draining, partial(self._registry.start_draining, 0.0)
        )

    @property
    def url(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self._scheme}://{host}:{self.port}"

    def run(self, on_ready: Callable[[str], None] | None = None) -> None:
        """Serve; `on_ready(url)` is called once requests are accepted. After the first SIGINT or
        SIGTERM no request is accepted and running ones may end for `drain_seconds`; a second one
        ends them at once. The engines are shut down when this returns."""
        self._server.on_ready = None if on_ready is None else lambda: on_ready(self.url)
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()
            self._registry.close()

    def stop(self) -> None:
        """Drain and return from `run`, as the first signal does. From any thread."""
        self._server.should_exit = True

    def _start_draining(self) -> None:
        self.app.state.server.draining = True
        self._registry.start_draining(self._drain_seconds)


def serve(
    models: Registry | Sequence[GenerationService],
    host: str = "127.0.0.1",
    port: int = 8000,
    on_ready: Callable[[str], None] | None = None,
    *,
    limits: Limits | None = None,
    access: Access | None = None,
    tls: Tls | None = None,
    drain_seconds: float = 30.0,
    metrics_compat: Collection[str] = (),
    at: socket.socket | None = None,
) -> None:
    """Serve until a signal; port 0 takes a free one. See HttpServer.run."""
    server = HttpServer(
        models,
        host,
        port,
        limits=limits,
        access=access,
        tls=tls,
        drain_seconds=drain_seconds,
        metrics_compat=metrics_compat,
        at=at,
    )
    server.run(on_ready)


class _DrainingServer(uvicorn.Server):
    """uvicorn's server, which ends with exit code 0 after a signal instead of raising it again."""

    def __init__(
        self,
        config: uvicorn.Config,
        on_drain: Callable[[], None],
        on_abort: Callable[[], None],
    ) -> None:
        super().__init__(config)
        self.on_ready: Callable[[], None] | None = None
        self._on_drain = on_drain
        self._on_abort = on_abort
        self._is_aborting = False

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started and self.on_ready is not None:
            self.on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_drain()
        await super().shutdown(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self._on_signal) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """The first drains. The second ends the answers, which then end their connections; the
        third does not wait for that."""
        self.force_exit = self._is_aborting
        self._is_aborting = self.should_exit
        if self._is_aborting and not self.force_exit:
            # A handler may have interrupted whoever holds the locks that this needs.
            threading.Thread(target=self._on_abort, daemon=True).start()
        self.should_exit = True


def _protocol(limits: Limits) -> type[BoundedHttp]:
    """uvicorn makes its protocols itself, so what is to be known to them is on their class."""
    return type("Http", (BoundedHttp,), {"header_seconds": limits.header_seconds})
