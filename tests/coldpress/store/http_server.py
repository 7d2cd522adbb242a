"""A tiny HTTP server for tests: a function answers each request, and all are written down."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Asked:
    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass
class Reply:
    """cut_at: the connection is closed after so many bytes of the body."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    cut_at: int | None = None


Answer = Callable[[Asked], Reply]


@dataclass
class Host:
    url: str
    asked: list[Asked]

    @property
    def netloc(self) -> str:
        return self.url.removeprefix("http://")


@contextmanager
def http_host(answer: Answer) -> Iterator[Host]:
    """Serves on a free port of this machine until the block ends."""
    asked: list[Asked] = []

    class Handler(BaseHTTPRequestHandler):
        def handle_one(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            headers = {key.lower(): value for key, value in self.headers.items()}
            request = Asked(self.command, self.path, headers, self.rfile.read(length))
            asked.append(request)
            reply = answer(request)
            self.send_response(reply.status)
            declared = {"Content-Length": str(len(reply.body)), **reply.headers}
            for name, value in declared.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(reply.body[: reply.cut_at])
            self.close_connection = reply.cut_at is not None

        do_GET = do_HEAD = do_POST = do_PUT = handle_one  # noqa: N815

        def log_message(self, *args: object) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield Host(f"http://127.0.0.1:{server.server_port}", asked)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def ranged(body: bytes, asked: Asked, cut_at: int | None = None) -> Reply:
    """`body`, or the end of it that a Range header asks for."""
    wanted = asked.headers.get("range")
    if wanted is None:
        return Reply(200, body, cut_at=cut_at)
    start = int(wanted.removeprefix("bytes=").removesuffix("-"))
    headers = {"Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
    return Reply(206, body[start:], headers, cut_at)
