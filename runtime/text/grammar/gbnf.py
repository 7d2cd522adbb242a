"""llama.cpp's grammars (GBNF, its grammars/README.md) in llguidance's Lark syntax.

Both describe the same languages, so nothing is lost; what GBNF can say of single tokens is refused.
Every rule gets a name of its own making, and every character set becomes a regular expression.
"""

import re

from runtime.confined.messages import Refused

_SPACE = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*")
_INLINE_SPACE = re.compile(r"(?:[ \t]|#[^\n]*)*")
_NAME = re.compile(r"[a-zA-Z0-9_-]+")
_REPEAT = re.compile(r"\{\s*(\d*)\s*(,?)\s*(\d*)\s*\}")
_ESCAPE = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))", re.DOTALL)
_LETTERS = {"n": "\n", "r": "\r", "t": "\t", "\\": "\\", '"': '"', "[": "[", "]": "]", "-": "-"}
_MAX_DEPTH = 100
_MAX_REPEATS = 2_000


def to_lark(source: str) -> str:
    """Raises Refused, with the line, for what is not GBNF or names single tokens."""
    return _Reader(source).grammar()


class _Reader:
    def __init__(self, source: str) -> None:
        self._source = source
        self._at = 0
        self._names: dict[str, str] = {}
        self._defined: set[str] = set()

    def grammar(self) -> str:
        rules = []
        self._skip(_SPACE)
        while self._at < len(self._source):
            name = self._take(_NAME, "the name of a rule")
            self._skip(_SPACE)
            self._expect("::=")
            self._skip(_SPACE)
            self._defined.add(name)
            rules.append(f"{self._rule(name)}: {self._alternatives(0)}")
            self._skip(_SPACE)
        missing = sorted(set(self._names) - self._defined)
        if "root" not in self._defined or missing:
            raise Refused(f"the grammar does not define {(missing or ['root'])[0][:60]!r}")
        return "\n".join([f"start: {self._rule('root')}", *rules, ""])

    def _rule(self, name: str) -> str:
        return self._names.setdefault(name, f"rule_{len(self._names)}")

    def _alternatives(self, depth: int) -> str:
        if depth > _MAX_DEPTH:
            raise self._error("groups are nested too deeply")
        choices = [self._sequence(depth)]
        while self._peek("|"):
            self._at += 1
            self._skip(_SPACE)
            choices.append(self._sequence(depth))
        return " | ".join(choices)

    def _sequence(self, depth: int) -> str:
        items = []
        space = _SPACE if depth else _INLINE_SPACE
        while (item := self._item(depth)) is not None:
            items.append(item + self._repeats())
            self._skip(space)
            if not depth:
                self._continue_on_next_line()
        return " ".join(items) or '""'

    def _continue_on_next_line(self) -> None:
        """At the top, a line end ends a rule, unless the next line begins with an alternative."""
        found = _SPACE.match(self._source, self._at)
        if found and self._source.startswith("|", found.end()):
            self._at = found.end()

    def _item(self, depth: int) -> str | None:
        char = self._source[self._at : self._at + 1]
        if char == '"':
            return self._literal()
        if char == "[":
            return self._set()
        if char == ".":
            self._at += 1
            return r"/(.|\n)/"
        if char == "(":
            self._at += 1
            self._skip(_SPACE)
            inside = self._alternatives(depth + 1)
            self._expect(")")
            return f"({inside})"
        if char in ("<", "!"):
            raise self._error("single tokens in a grammar are not supported")
        name = _NAME.match(self._source, self._at)
        if not name:
            return None
        self._at = name.end()
        return self._rule(name[0])

    def _repeats(self) -> str:
        char = self._source[self._at : self._at + 1]
        if char and char in "*+?":
            self._at += 1
            return char
        found = _REPEAT.match(self._source, self._at)
        if found is None:
            return ""
        self._at = found.end()
        low, comma, high = found.groups()
        if max(int(low or 0), int(high or 0)) > _MAX_REPEATS or not (low or high):
            raise self._error(f"a repetition is empty or counts to more than {_MAX_REPEATS}")
        return f"{{{low or 0},{high}}}" if comma else f"{{{low}}}"

    def _literal(self) -> str:
        self._at += 1
        text = ""
        while not self._peek('"'):
            text += self._character()
        self._at += 1
        return f"/{''.join(map(_code, text))}/" if text else '""'

    def _set(self) -> str:
        self._at += 1
        inside = ""
        if negated := self._peek("^"):
            self._at += 1
        while not self._peek("]"):
            first = last = self._character()
            if self._peek("-") and self._source[self._at + 1 : self._at + 2] != "]":
                self._at += 1
                last = self._character()
            if last < first:
                raise self._error("a range of characters runs backwards")
            inside += f"{_code(first)}-{_code(last)}"
        self._at += 1
        if not inside:
            raise self._error("a set of characters is empty")
        return f"/[{'^' if negated else ''}{inside}]/"

    def _character(self) -> str:
        char = self._source[self._at : self._at + 1]
        if char in ("", "\n"):
            raise self._error("a string or a set of characters does not end")
        if char != "\\":
            self._at += 1
            return char
        found = _ESCAPE.match(self._source, self._at)
        digits = found and (found[1] or found[2] or found[3])
        if found is None or (not digits and found[4] not in _LETTERS):
            raise self._error("an escape is not known")
        self._at = found.end()
        if not digits:
            return _LETTERS[found[4]]
        code = int(digits, 16)
        if code > 0x10FFFF or 0xD800 <= code < 0xE000:
            raise self._error("an escape is no character")
        return chr(code)

    def _peek(self, text: str) -> bool:
        return self._source.startswith(text, self._at)

    def _skip(self, pattern: re.Pattern[str]) -> None:
        found = pattern.match(self._source, self._at)
        self._at = found.end() if found else self._at

    def _take(self, pattern: re.Pattern[str], what: str) -> str:
        found = pattern.match(self._source, self._at)
        if found is None:
            raise self._error(f"{what} is expected")
        self._at = found.end()
        return found[0]

    def _expect(self, text: str) -> None:
        if not self._peek(text):
            raise self._error(f"'{text}' is expected")
        self._at += len(text)

    def _error(self, problem: str) -> Refused:
        return Refused(f"line {self._source.count(chr(10), 0, self._at) + 1}: {problem}")


def _code(char: str) -> str:
    return f"\\x{{{ord(char):x}}}"
