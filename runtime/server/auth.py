"""Who may ask, where the operator set keys."""

from starlette.types import ASGIApp, Receive, Scope, Send

from runtime.server.errors import ApiError, error_response
from runtime.server.guesses import Guesses
from runtime.server.key_limits import KeyLimits
from runtime.server.keys import ApiKey, KeyRing
from runtime.server.record import current_record

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
_ADMIN_FOLDER = "/v1/admin/"


class RequireKey:
    """Lets a request through if its bearer token is a key, which has not used up what it may.
    Health is open, for probes that carry no secret, and so is the page, which asks for the key."""

    def __init__(self, app: ASGIApp, ring: KeyRing, limits: KeyLimits) -> None:
        self._app = app
        self._ring = ring
        self._limits = limits
        self._guesses = Guesses()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _is_open(scope["path"]):
            await self._app(scope, receive, send)
            return
        record = current_record()
        assert record is not None, "the record begins outside"
        try:
            record.key = self._key_of(scope)
            self._limits.enter(record.key)
        except ApiError as error:
            await error_response(error, scope["path"])(scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            self._limits.leave(record)

    def _key_of(self, scope: Scope) -> ApiKey:
        """Raises ApiError: 401 for a wrong key, 429 after many, 403 for one that may not."""
        address = str((scope.get("client") or ("",))[0])
        if (wait := self._guesses.seconds_to_wait(address)) > 0:
            raise ApiError(
                429,
                "too many wrong API keys came from this address; try again later",
                code="rate_limit_exceeded",
                headers={"Retry-After": str(int(wait) + 1)},
            )
        given = dict(scope["headers"]).get(b"authorization", b"")
        kind, _, token = given.partition(b" ")
        key = self._ring.find(token.strip())
        if key is None or kind.lower() != b"bearer":
            if given:
                self._guesses.wrong(address)
            raise ApiError(
                401,
                "the API key is missing or wrong; send it as 'Authorization: Bearer KEY'",
                code="invalid_api_key",
                headers={"WWW-Authenticate": "Bearer"},
            )
        if scope["path"].startswith(_ADMIN_FOLDER) and not key.admin:
            raise ApiError(403, "this API key may not load or unload models", code="not_admin")
        return key


def _is_open(path: str) -> bool:
    return path in _OPEN_PATHS or path.startswith(_OPEN_FOLDER)
