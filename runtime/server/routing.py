"""Starlette with routes as functions of the parts of their paths, which may answer with an object.

Bodies are read and checked by the routes themselves, so that this is all there is to it: what more
FastAPI does takes a tenth of a second at each start, and ten megabytes.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from inspect import signature
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

Handler = Callable[..., Awaitable[Response | Mapping[str, Any] | Sequence[Any]]]


class App(Starlette):
    """See `add_api_route`."""

    def add_api_route(self, path: str, handler: Handler, *, methods: Sequence[str]) -> None:
        """`handler` takes the parts that `path` names, and the request if it has a parameter of
        that name; what is no Response is sent as JSON. Other methods get 405, HEAD included."""
        takes_request = "request" in signature(handler).parameters

        async def endpoint(request: Request) -> Response:
            given = {"request": request} if takes_request else {}
            answer = await handler(**given, **request.path_params)
            return answer if isinstance(answer, Response) else JSONResponse(answer)

        route = Route(path, endpoint, name=handler.__name__)
        route.methods = set(methods)
        self.router.routes.append(route)
