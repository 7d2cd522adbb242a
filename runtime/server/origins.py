"""Pages of other sites, which a browser lets send requests here without being asked."""

from collections.abc import Collection

from starlette.types import ASGIApp, Receive, Scope, Send

from runtime.server.errors import ApiError, error_response

_OWN = (b"", b"none", b"same-origin")


class RefuseForeignPages:
    """Browsers keep other sites' pages from reading answers, not from asking: what a page sends
    here as plain text is run. They say whence it comes, and what comes from a site that is not
    among `origins` is 403. Only browsers say such a thing, so that clients never meet it."""

    def __init__(self, app: ASGIApp, origins: Collection[str]) -> None:
        self._app = app
        self._origins = frozenset(origin.encode() for origin in origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST" and self._is_foreign(scope):
            error = ApiError(
                403,
                "pages of other sites may not ask this server; --cors-origin names those that may",
                code="foreign_origin",
            )
            await error_response(error, scope["path"])(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _is_foreign(self, scope: Scope) -> bool:
        headers = dict(scope["headers"])
        if headers.get(b"sec-fetch-site", b"") in _OWN or b"*" in self._origins:
            return False
        return headers.get(b"origin", b"") not in self._origins
