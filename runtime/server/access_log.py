"""One line for each request, as text or JSON; never a prompt, an answer or a key."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal, TextIO

from starlette.types import Scope

from runtime.server.record import RequestRecord

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


@contextmanager
def logged(log: AccessLog, scope: Scope, record: RequestRecord) -> Iterator[None]:
    """Writes a line once the request has been answered, or its client has left (status 0)."""
    try:
        yield
    finally:
        log.write(_fields(scope, record))


def _fields(scope: Scope, record: RequestRecord) -> dict[str, object]:
    fields: dict[str, object] = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
        "method": scope["method"][:16],
        "path": scope["path"][:_MAX_PATH],
        "status": record.status,
        "ms": round(1000 * (time.monotonic() - record.started), 1),
        "request_id": record.request_id,
    }
    if record.key is not None:
        fields["key"] = record.key.name
    if record.generations:
        fields["model"] = record.generations[0].model_name
        fields["prompt_tokens"] = record.prompt_tokens
        fields["answer_tokens"] = record.answer_tokens
        fields["ends"] = [each.finish_reason for each in record.generations]
    return fields
