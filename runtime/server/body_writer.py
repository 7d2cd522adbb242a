"""A way past ASGI, uvicorn and h11 for the many small pieces of a stream."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.flow_control import FlowControl

from runtime.server.sse import BODY_WRITER


class ChunkWriter:
    """Chunks of a body whose head said that it comes in chunks. h11 keeps no account of those, so
    that it need not see them; uvicorn and it would take ten times as long for each."""

    def __init__(self, transport: asyncio.Transport, flow: FlowControl) -> None:
        self._transport = transport
        self._flow = flow
        self.drain = flow.drain

    def write(self, data: bytes) -> bool:
        """See BodyWriter; what comes after the client has left is dropped."""
        if self._transport.is_closing():
            return True
        self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))
        return not self._flow.write_paused


def offering_a_writer(app: ASGIApp, transport: asyncio.Transport, flow: FlowControl) -> ASGIApp:
    """The app on one connection, with a BodyWriter for each stream that asks for one."""

    async def offering(scope: Scope, receive: Receive, send: Send) -> None:
        async def offering_send(message: Message) -> None:
            await send(message)
            if BODY_WRITER in message and _is_chunked(scope, message):
                message[BODY_WRITER] = ChunkWriter(transport, flow)

        await app(scope, receive, offering_send)

    return offering


def _is_chunked(scope: Scope, start: Message) -> bool:
    """Whether h11 sends the body of this response in chunks."""
    has_length = any(name.lower() == b"content-length" for name, _ in start["headers"])
    return scope["http_version"] == "1.1" and scope["method"] != "HEAD" and not has_length
