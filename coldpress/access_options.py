"""The options of `coldpress serve` that say who may use it and what is told of it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from coldpress.option_groups import option_group
from coldpress.options import PATH
from quant.format.errors import InputError

if TYPE_CHECKING:
    from runtime.server.access import Access, Tls

F = TypeVar("F", bound=Callable[..., Any])


@dataclass(frozen=True)
class AccessPlan:
    """As on the command line; nothing has been read yet."""

    api_keys: Path | None
    cors_origins: tuple[str, ...]
    tls_cert: Path | None
    tls_key: Path | None
    access_log: str | None
    trace: bool

    def open(self) -> "tuple[Access, Tls | None]":
        """Reads the files. Raises InputError for what is wrong in them."""
        from runtime.server.access import Access, Tls
        from runtime.server.access_log import AccessLog
        from runtime.server.keys import read_keys
        from runtime.server.tracing import open_tracer

        if (self.tls_cert is None) != (self.tls_key is None):
            raise InputError("--tls-cert and --tls-key belong together; give both")
        tls = None
        if self.tls_cert is not None and self.tls_key is not None:
            tls = Tls(self.tls_cert, self.tls_key)
        keys = None if self.api_keys is None else read_keys(self.api_keys)
        log = (
            AccessLog("json" if self.access_log == "json" else "text") if self.access_log else None
        )
        tracer = open_tracer() if self.trace else None
        return Access(keys, self.cors_origins, log, tracer), tls


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


def access_options(function: F) -> F:
    """`--api-keys`, `--cors-origin`, `--tls-cert`, `--tls-key`, `--access-log` and `--trace`; the
    command gets them as one `access`."""
    return option_group("access", _OPTIONS, AccessPlan)(function)
