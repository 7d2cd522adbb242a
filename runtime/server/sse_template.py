"""Events that differ in one string only: the rest is written once."""

from json.encoder import encode_basestring_ascii
from typing import Any

from runtime.server.sse import event

TEXT = "\ue000"
"""Stands for the string in the payload that a template is made of."""


class EventTemplate:
    """`of(text)` is `event(payload)` with `text` in the place of TEXT, which it holds once."""

    __slots__ = ("_after", "_before")

    def __init__(self, payload: dict[str, Any]) -> None:
        before, found, after = event(payload).partition(_quoted(TEXT))
        assert found and _quoted(TEXT) not in after, "the payload holds TEXT once"
        self._before, self._after = before, after

    def of(self, text: str) -> bytes:
        return self._before + _quoted(text) + self._after


def _quoted(text: str) -> bytes:
    return encode_basestring_ascii(text).encode()
