"""Counts HTTP requests; the outermost layer, so that refused ones are counted as well."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.server.metrics import Metrics

_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))


class CountRequests:
    """Counts what is being answered, and what was answered by method and status. Status 0 stands
    for a client that left before there was one."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 0

        async def counting_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._metrics.http_active += 1
        try:
            await self._app(scope, receive, counting_send)
        finally:
            self._metrics.http_active -= 1
            # A client's own words would make labels without end.
            method = scope["method"] if scope["method"] in _METHODS else "other"
            counted = self._metrics.http_requests
            counted[method, status] = counted.get((method, status), 0) + 1
