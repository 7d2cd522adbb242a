"""What one request may cost before the engine sees it."""

import asyncio
import json
import re
from dataclasses import dataclass
from math import isfinite
from typing import Any

from starlette.requests import ClientDisconnect, Request

from runtime.server.errors import ApiError, client_left
from runtime.server.json_values import MAX_VALUES, overfull_field

_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_NUL = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
"""Behind an even number of backslashes, which are those of the text itself."""


@dataclass(frozen=True)
class Limits:
    """max_body_bytes: larger bodies get 413. max_bodies_bytes: of all that are not answered yet
    together; more get 429. body_seconds: slower ones get 408. header_seconds: a connection that
    brought no whole head of a request by then gets 408 and is closed. max_sequences: prompts times
    n of one request. stall_seconds: without a step for that long while requests live, /health says
    503. comment_seconds: streams that are quiet for so long get a comment; None for never."""

    max_body_bytes: int = 8 * 1024 * 1024
    max_bodies_bytes: int = 128 * 1024 * 1024
    body_seconds: float = 30.0
    header_seconds: float = 10.0
    max_sequences: int = 64
    stall_seconds: float = 120.0
    comment_seconds: float | None = None


async def read_body(request: Request, limits: Limits) -> bytes:
    """The whole body; ApiError 413 or 408, after which the connection is closed, or 499."""
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:20]) > limits.max_body_bytes:
        raise _too_large(limits)
    body = bytearray()
    try:
        async with asyncio.timeout(limits.body_seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.max_body_bytes:
                    raise _too_large(limits)
    except TimeoutError:
        raise ApiError(
            408,
            f"the body did not arrive within {limits.body_seconds:g} s",
            headers={"Connection": "close"},
        ) from None
    except ClientDisconnect:
        raise client_left() from None
    return bytes(body)


def parse_object(body: bytes) -> dict[str, Any]:
    """A JSON object, strictly: no NaN or Infinity, no key twice, no half of a surrogate pair; no
    NUL, which ends a text early wherever C strings are."""
    if _NUL.search(body):
        raise ApiError(400, "the body holds the character NUL (\\u0000), which no text needs")
    if not body.strip():
        raise ApiError(400, "the body is empty; send a JSON object")
    field = overfull_field(body)
    if field is not None:
        what = f"'{field}' makes the body hold" if field else "the body holds"
        message = f"{what} more than {MAX_VALUES} texts, lists and objects"
        raise ApiError(400, message, param=field or None)
    try:
        value = json.loads(
            body.decode(),
            parse_constant=_no_constant,
            parse_float=_finite,
            object_pairs_hook=_unique_keys,
        )
        if _SURROGATE.search(body):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply") from None
    except UnicodeError:
        raise ApiError(400, "the body holds text that is not valid Unicode") from None
    except ValueError as error:
        raise ApiError(400, f"the body is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object")
    return value


def _too_large(limits: Limits) -> ApiError:
    return ApiError(
        413,
        f"the body is larger than {limits.max_body_bytes} bytes",
        code="request_too_large",
        headers={"Connection": "close"},
    )


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not isfinite(value):
        raise ValueError("a number is too large")
    return value


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object holds the same key twice")
    return found
