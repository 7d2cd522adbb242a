"""Who may use a server and what is told of it: keys, origins, logs and traces."""

import re
import ssl
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


_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#\s]+")


@dataclass(frozen=True)
class Access:
    """keys: None lets everyone in. origins: of pages in browsers that may ask, "*" for all; none by
    default. log: None writes no lines. tracer: None sends no spans. Raises InputError for an origin
    that no browser would send."""

    keys: KeyRing | None = None
    origins: tuple[str, ...] = ()
    log: AccessLog | None = None
    tracer: "Tracer | None" = None

    def __post_init__(self) -> None:
        for origin in self.origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise InputError(
                    f"--cors-origin '{origin}' is not as browsers write it; it looks like "
                    "https://app.example or http://localhost:3000, or is '*'"
                )


@dataclass(frozen=True)
class Tls:
    """Files in PEM form. Raises InputError for one that is not there, or is not what it should."""

    certificate: Path
    key: Path

    def __post_init__(self) -> None:
        for path in (self.certificate, self.key):
            if not path.is_file():
                raise InputError(
                    f"{path}: there is no such file; TLS needs a certificate and its key"
                )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # Never asks for the password of a key: nobody may be there to type it.
            context.load_cert_chain(self.certificate, self.key, password=str)
        except (OSError, ValueError) as error:
            raise InputError(
                f"{self.certificate} and {self.key} are no certificate and its key in PEM form "
                f"without a password ({error})"
            ) from error


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
