"""Who may use a server and what is told of it: keys, origins, logs and traces."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.middleware.cors import CORSMiddleware

from quant.format.errors import InputError
from runtime.server.access_log import AccessLog, logged
from runtime.server.auth import RequireKey
from runtime.server.key_limits import KeyFamilies, KeyLimits
from runtime.server.keys import KeyRing
from runtime.server.metrics import Metrics
from runtime.server.metrics_http import counted
from runtime.server.origins import RefuseForeignPages
from runtime.server.record import Observer, ObserveRequests
from runtime.server.routing import App
from runtime.server.tracing import traced

if TYPE_CHECKING:
    from opentelemetry.trace import Tracer


@dataclass(frozen=True)
class Access:
    """keys: None lets everyone in. origins: of pages in browsers that may ask, "*" for all; none by
    default. log: None writes no lines. tracer: None sends no spans."""

    keys: KeyRing | None = None
    origins: tuple[str, ...] = ()
    log: AccessLog | None = None
    tracer: "Tracer | None" = None


@dataclass(frozen=True)
class Tls:
    """Files in PEM form. Raises InputError for one that is not there."""

    certificate: Path
    key: Path

    def __post_init__(self) -> None:
        for path in (self.certificate, self.key):
            if not path.is_file():
                raise InputError(
                    f"{path}: there is no such file; TLS needs a certificate and its key"
                )


def add_access(app: App, access: Access, metrics: Metrics) -> None:
    """Wraps the app; what is added last is outermost."""
    if access.keys is not None:
        limits = KeyLimits(access.keys)
        metrics.registry.register(KeyFamilies(limits))
        app.add_middleware(RequireKey, ring=access.keys, limits=limits)
    app.add_middleware(RefuseForeignPages, origins=access.origins)
    if access.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(access.origins),
            allow_methods=["GET", "POST"],
            # OpenAI's client for browsers sends a dozen of its own.
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "Retry-After", "X-Should-Retry"],
        )
    observers: list[Observer] = [partial(counted, metrics)]
    if access.log is not None:
        observers.append(partial(logged, access.log))
    if access.tracer is not None:
        observers.append(partial(traced, access.tracer))
    app.add_middleware(ObserveRequests, observers=observers)
