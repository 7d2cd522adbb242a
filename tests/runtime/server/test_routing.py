"""Routes as functions of the parts of their paths."""

import asyncio
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from runtime.server.routing import App


def made() -> App:
    app = App()

    async def shout(word: str) -> dict[str, Any]:
        return {"word": word.upper(), "é": None}

    async def echo(request: Request, word: str, times: str = "1") -> Response:
        return PlainTextResponse(word * int(times) + request.url.query)

    app.add_api_route("/shout/{word:path}", shout, methods=["GET"])
    app.add_api_route("/echo/{word}", echo, methods=["POST"])
    app.add_api_route("/echo/{word}/{times}", echo, methods=["POST", "HEAD"])
    return app


@pytest.mark.parametrize(
    ("method", "path", "status", "text"),
    [
        ("GET", "/shout/a/b", 200, '{"word":"A/B","é":null}'),
        ("HEAD", "/shout/a", 405, None),
        ("POST", "/echo/x?q=1", 200, "xq=1"),
        ("POST", "/echo/x/3", 200, "xxx"),
        ("HEAD", "/echo/x/3", 200, None),
        ("GET", "/echo/x", 405, None),
        ("GET", "/", 404, None),
    ],
)
def test_what_a_route_answers(method: str, path: str, status: int, text: str | None) -> None:
    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(made())
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as http:
            return await http.request(method, path)

    answer = asyncio.run(ask())
    assert answer.status_code == status
    assert text is None or answer.text == text
