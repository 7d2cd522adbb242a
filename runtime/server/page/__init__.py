"""GET /: a page to chat with the models and to see how the server fares. Nothing in it is loaded
from elsewhere, and its policy forbids that anything is."""

from functools import cache
from hashlib import sha256
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response

from runtime.server.routing import App

_PAGE = "index.html"
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


def add_routes(app: App) -> None:
    app.add_api_route("/", show_file, methods=["GET", "HEAD"])
    for name in assets():
        if name != _PAGE:
            app.add_api_route(f"/page/{name}", show_file, methods=["GET", "HEAD"])


async def show_file(request: Request) -> Response:
    """The page itself, or the part of it that the path names; 304 where the client has it."""
    name = request.url.path.removeprefix("/page/")
    name = _PAGE if name == "/" else name
    content = assets()[name]
    tag = f'"{sha256(content).hexdigest()[:24]}"'
    headers = {**_HEADERS, "ETag": tag}
    if request.headers.get("if-none-match") == tag:
        return Response(status_code=304, headers=headers)
    return Response(content, media_type=_KINDS[name[name.rindex(".") :]], headers=headers)


@cache
def assets() -> dict[str, bytes]:
    """Every file of the page, by name."""
    found = files(__name__).iterdir()
    return {one.name: one.read_bytes() for one in found if one.name.endswith(tuple(_KINDS))}
