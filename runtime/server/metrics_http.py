"""Counts HTTP requests, refused ones as well."""

from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import Scope

from runtime.server.metrics import Metrics
from runtime.server.record import RequestRecord

_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


@contextmanager
def counted(metrics: Metrics, scope: Scope, record: RequestRecord) -> Iterator[None]:
    """Counts what is being answered, and what was answered by method and status. Status 0 stands
    for a client that left before there was one."""
    metrics.http_active += 1
    try:
        yield
    finally:
        metrics.http_active -= 1
        # A client's own words would make labels without end.
        method = scope["method"] if scope["method"] in _METHODS else "other"
        counts = metrics.http_requests
        counts[method, record.status] = counts.get((method, record.status), 0) + 1
