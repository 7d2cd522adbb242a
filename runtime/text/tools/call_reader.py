"""One call written as a JSON object, read in pieces: {"name": ..., "arguments": {...}}."""

import json
from typing import Literal

_SPACE = " \t\r\n"
_ARGUMENTS = ("arguments", "parameters")

State = Literal["open", "key", "colon", "value", "after", "done", "failed"]


class CallReader:
    """Gives out the name once it is known, and the arguments as they come, as written.

    `done` after the closing brace; `failed` where the text is no such object. Arguments that come
    before the name wait for it; arguments written as a string of JSON are given out as that JSON.
    """

    def __init__(self) -> None:
        self.state: State = "open"
        self.name: str | None = None
        self._key = ""
        self._text = ""
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._waiting = ""
        self._has_arguments = False
        self._alone = False

    @classmethod
    def of_arguments(cls, name: str) -> "CallReader":
        """For a call whose name is known, and whose arguments stand alone."""
        reader = cls()
        reader.name, reader._alone = name, True
        reader.state, reader._key = "value", _ARGUMENTS[0]
        return reader

    @property
    def done(self) -> bool:
        return self.state == "done"

    @property
    def failed(self) -> bool:
        return self.state == "failed"

    def feed(self, text: str) -> tuple[int, str]:
        """How many characters of `text` belong to the object, and what it adds to the arguments."""
        for place, char in enumerate(text):
            self._step(char)
            if self.done:
                return place + 1, self._given()
            if self.failed:
                return place, self._given()
        return len(text), self._given()

    def _given(self) -> str:
        if self.name is None:
            return ""
        given, self._waiting = self._waiting, ""
        return given

    def _step(self, char: str) -> None:
        if self.state == "value":
            self._value(char)
        elif self.state == "key" and self._in_string:
            self._key_character(char)
        elif char not in _SPACE:
            self._structure(char)

    def _structure(self, char: str) -> None:
        if self.state == "open" and char == "{":
            self.state = "key"
        elif self.state == "key" and char == '"':
            self._in_string, self._text = True, char
        elif self.state == "colon" and char == ":":
            self.state, self._text, self._depth = "value", "", 0
        elif self.state == "after" and char == ",":
            self.state = "key"
        elif self.state in ("after", "key") and char == "}":
            self._end()
        else:
            self.state = "failed"

    def _key_character(self, char: str) -> None:
        self._text += char
        if self._string_ends(char):
            key = _parsed(self._text)
            self._key = key if isinstance(key, str) else ""
            self.state = "colon"

    def _string_ends(self, char: str) -> bool:
        if self._escaped:
            self._escaped = False
        elif char == "\\":
            self._escaped = True
        elif char == '"':
            self._in_string = False
        return not self._in_string

    def _value(self, char: str) -> None:
        if not self._text and char in _SPACE:
            return
        if not self._in_string and self._depth == 0 and char in ",}" and self._text:
            self._value_ended()
            self.state = "after"
            self._structure(char)
            return
        self._text += char
        self._stream(char)
        if self._in_string:
            if self._string_ends(char) and self._depth == 0:
                self._close_value()
        elif char == '"':
            self._in_string = True
        elif char in "{[":
            self._depth += 1
        elif char in "}]":
            self._depth -= 1
            if self._depth < 0:
                self.state = "failed"
            elif self._depth == 0:
                self._close_value()

    def _stream(self, char: str) -> None:
        if self._key in _ARGUMENTS and self._text[0] == "{":
            self._has_arguments = True
            self._waiting += char

    def _close_value(self) -> None:
        self._value_ended()
        self.state = "done" if self._alone else "after"

    def _value_ended(self) -> None:
        """A whole value is there that was not given out as it came."""
        value = None if self._key in _ARGUMENTS and self._text[0] == "{" else _parsed(self._text)
        if self._key == "name" and isinstance(value, str):
            self.name = value
        elif self._key in _ARGUMENTS and isinstance(value, str):
            self._has_arguments = True
            self._waiting += value
        self._text = ""

    def _end(self) -> None:
        if self.name is None:
            self.state = "failed"
            return
        if not self._has_arguments:
            self._waiting = "{}"
        self.state = "done"


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except ValueError:
        return None
