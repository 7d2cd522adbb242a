"""HTTP requests of the store: bounded, without secrets for strangers.

urllib with the few handlers that are wanted: no file, ftp or data URLs, and no redirect that takes
an Authorization header to another host, or a secure connection to an open one.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException, HTTPMessage
from typing import IO, Any
from urllib.parse import urlsplit

from quant.format.errors import InputError

MAX_JSON_BYTES = 4 << 20
_SECONDS = 60.0
_USER_AGENT = "coldpress"


class HttpError(InputError):
    """An answer other than the wanted one; `status` is 0 where there was none;
    `challenge` is how a 401 wants its clients to log in."""

    def __init__(self, message: str, status: int = 0, challenge: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.challenge = challenge


def open_url(
    url: str,
    headers: Mapping[str, str] | None = None,
    *,
    method: str = "GET",
    data: Any = None,
) -> Any:
    """An open response, to be closed. HttpError naming the host otherwise."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"'{url[:200]}' is not an http or https address; refused")
    asked = {"User-Agent": _USER_AGENT, "Accept-Encoding": "identity", **(headers or {})}
    request = urllib.request.Request(url, data=data, headers=asked, method=method)
    try:
        response = _opener().open(request, timeout=_SECONDS)
    except urllib.error.HTTPError as error:
        with error:
            said = _said(error)
        raise HttpError(
            f"{parts.netloc} answered {error.code} to {method} {parts.path[:200]}{said}",
            error.code,
            error.headers.get("WWW-Authenticate", ""),
        ) from error
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise HttpError(
            f"{parts.netloc} cannot be reached ({reason}); check the network and run again"
        ) from error
    if response.headers.get("Content-Encoding", "identity") != "identity":
        response.close()
        raise HttpError(f"{parts.netloc} sent compressed data unasked; refused")
    return response


def read_json(url: str, headers: Mapping[str, str] | None = None) -> tuple[Any, bytes, HTTPMessage]:
    """A JSON answer, its bytes and its headers. HttpError as for `open_url`, or for an answer
    that is too large or no JSON."""
    with open_url(url, headers) as response:
        raw = response.read(MAX_JSON_BYTES + 1)
        if len(raw) > MAX_JSON_BYTES:
            raise HttpError(f"{url[:200]}: the answer is larger than {MAX_JSON_BYTES:,} bytes")
        try:
            return json.loads(raw), raw, response.headers
        except (ValueError, RecursionError) as error:
            raise HttpError(f"{url[:200]}: the answer is not JSON") from error


class _CarefulRedirects(urllib.request.HTTPRedirectHandler):
    max_redirections = 5

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        old, new = urlsplit(req.full_url), urlsplit(newurl)
        if new.scheme not in ("http", "https") or (old.scheme, new.scheme) == ("https", "http"):
            raise HttpError(f"{old.netloc} redirects to '{newurl[:200]}'; refused", code)
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and (old.scheme, old.netloc) != (new.scheme, new.netloc):
            following.remove_header("Authorization")
            following.remove_header("Cookie")
        return following


def _opener() -> urllib.request.OpenerDirector:
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        _CarefulRedirects,
        urllib.request.HTTPDefaultErrorHandler,
        urllib.request.HTTPErrorProcessor,
    ):
        opener.add_handler(handler())
    return opener


def _said(error: urllib.error.HTTPError) -> str:
    """What a registry gives as its reason, shortened and printable."""
    try:
        body = json.loads(error.read(4096))
        first = body["errors"][0]
        text = str(first.get("message") or first.get("code"))
    except Exception:  # whatever it was, it was no reason
        return ""
    return f" ({''.join(c for c in text if c.isprintable())[:200]})"
