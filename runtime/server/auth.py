"""An API key, where the operator sets one."""

import hmac
from hashlib import sha256

from starlette.types import ASGIApp, Receive, Scope, Send

from runtime.server.errors import ApiError, error_response

_OPEN_PATHS = frozenset(
    (
        "/health",
        "/v1/health",
        "/ready",
        "/v2/health/live",
        "/v2/health/ready",
        "/",
    )
)
_OPEN_FOLDER = "/page/"


class RequireKey:
    """Lets a request through if its bearer token is the key, compared in constant time. Health
    is open, for probes that carry no secret, and so is the page, which asks for the key."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._digest = sha256(key.encode()).digest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_open(scope["path"]) or self._has_key(scope):
            await self._app(scope, receive, send)
            return
        error = ApiError(
            401,
            "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await error_response(error, scope["path"])(scope, receive, send)

    def _has_key(self, scope: Scope) -> bool:
        given = dict(scope["headers"]).get(b"authorization", b"")
        kind, _, token = given.partition(b" ")
        digest = sha256(token.strip()).digest()
        return kind.lower() == b"bearer" and hmac.compare_digest(digest, self._digest)


def _is_open(path: str) -> bool:
    return path in _OPEN_PATHS or path.startswith(_OPEN_FOLDER)
