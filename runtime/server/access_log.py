"""One line for each request, as text or JSON; never a prompt, an answer or a key."""

import json
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, TextIO

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runtime.server.record import current_record

LogFormat = Literal["text", "json"]
_MAX_PATH = 200


@dataclass(frozen=True)
class AccessLog:
    """Where lines go, and how they look."""

    form: LogFormat
    stream: TextIO = sys.stderr

    def write(self, fields: dict[str, object]) -> None:
        if self.form == "json":
            line = json.dumps(fields, ensure_ascii=True, separators=(",", ":"))
        else:
            # Escaped, so that no client writes lines of its own.
            line = " ".join(f"{name}={json.dumps(value)}" for name, value in fields.items())
        self.stream.write(line + "\n")
        self.stream.flush()


class LogRequests:
    """Writes a line once a request has been answered, or its client has left (status 0)."""

    def __init__(self, app: ASGIApp, log: AccessLog) -> None:
        self._app = app
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, begin = 0, time.monotonic()

        async def watching_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watching_send)
        finally:
            self._log.write(_fields(scope, status, time.monotonic() - begin))


def _fields(scope: Scope, status: int, seconds: float) -> dict[str, object]:
    fields: dict[str, object] = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "method": scope["method"][:16],
        "path": scope["path"][:_MAX_PATH],
        "status": status,
        "ms": round(1000 * seconds, 1),
    }
    record = current_record()
    if record is not None:
        fields["request_id"] = record.request_id
        if record.key is not None:
            fields["key"] = record.key.name
        if record.generations:
            fields["model"] = record.generations[0].model_name
            fields["prompt_tokens"] = record.prompt_tokens
            fields["answer_tokens"] = record.answer_tokens
            fields["ends"] = [each.finish_reason for each in record.generations]
    return fields
