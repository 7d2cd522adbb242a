"""The options of `coldpress serve` that say who may use it and what is told of it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from coldpress.options import PATH
from quant.format.errors import InputError

if TYPE_CHECKING:
    from runtime.server.access import Access, Tls

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class AccessPlan:
    """As on the command line; nothing has been read yet."""

    keys: Path | None
    origins: tuple[str, ...]
    certificate: Path | None
    tls_key: Path | None
    log: str | None
    trace: bool

    def open(self) -> "tuple[Access, Tls | None]":
        """Reads the files. Raises InputError for what is wrong in them."""
        from runtime.server.access import Access, Tls
        from runtime.server.access_log import AccessLog
        from runtime.server.keys import read_keys
        from runtime.server.tracing import open_tracer

        if (self.certificate is None) != (self.tls_key is None):
            raise InputError("--tls-cert and --tls-key belong together; give both")
        tls = None
        if self.certificate is not None and self.tls_key is not None:
            tls = Tls(self.certificate, self.tls_key)
        keys = None if self.keys is None else read_keys(self.keys)
        log = AccessLog("json" if self.log == "json" else "text") if self.log else None
        tracer = open_tracer() if self.trace else None
        return Access(keys, self.origins, log, tracer), tls


def access_options(function: F) -> F:
    """`--api-keys`, `--cors-origin`, `--tls-cert`, `--tls-key`, `--access-log` and `--trace`; the
    command gets them as one `access`."""

    @wraps(function)
    def with_access(
        *args: Any,
        api_keys: Path | None,
        cors_origins: tuple[str, ...],
        tls_cert: Path | None,
        tls_key: Path | None,
        access_log: str | None,
        trace: bool,
        **kwargs: Any,
    ) -> Any:
        plan = AccessPlan(api_keys, cors_origins, tls_cert, tls_key, access_log, trace)
        return function(*args, access=plan, **kwargs)

    wrapped: Callable[..., Any] = with_access
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return cast(F, wrapped)


_OPTIONS = (
    click.option(
        "--api-keys",
        type=PATH,
        metavar="FILE",
        help="YAML list of keys with their names and limits; without one, everyone may ask.",
    ),
    click.option(
        "--cors-origin",
        "cors_origins",
        multiple=True,
        metavar="ORIGIN",
        help="Pages of this origin may ask from a browser; '*' for all. None by default.",
    ),
    click.option("--tls-cert", type=PATH, metavar="FILE", help="Certificate, PEM, for https."),
    click.option("--tls-key", type=PATH, metavar="FILE", help="The certificate's private key."),
    click.option(
        "--access-log",
        type=click.Choice(["text", "json"]),
        help="A line on stderr for each request: never a prompt, an answer or a key.",
    ),
    click.option(
        "--trace", is_flag=True, help="Send OpenTelemetry spans (extra telemetry); no text in them."
    ),
)
