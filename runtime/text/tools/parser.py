"""Tool calls found in the text of an answer, which arrives in pieces."""

import re
import secrets
import string
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Literal

from runtime.text.tools.call_reader import CallReader
from runtime.text.tools.formats import ToolFormat

_LETTERS = string.ascii_letters + string.digits
_BETWEEN = re.compile(r"[\s\[\],;]*")
_NAME = re.compile(r"\s*([A-Za-z0-9_.:/-]+)(?:\[CALL_ID\]([A-Za-z0-9]+))?(?:\[ARGS\])?\s*(?=\{)")
_MAX_NAME = 400
"""A name and its marks are shorter; what is not a name by then is none."""


@dataclass(frozen=True)
class CallDelta:
    """A piece of call number `index`; its first piece has `id` and `name`."""

    index: int
    arguments: str = ""
    id: str | None = None
    name: str | None = None


@dataclass
class Parsed:
    """What a piece of text brought: content, then calls."""

    content: str = ""
    calls: list[CallDelta] = field(default_factory=list)


class ToolCallParser:
    """`feed` pieces, then `finish`. What comes out does not depend on how the text was cut, but for
    where its pieces are cut.

    names: of the tools. Without marks, only an object that names one of them is a call. What looks
    like a call but is none is content, as it was written.
    """

    def __init__(
        self,
        format_: ToolFormat,
        names: Collection[str],
        make_id: Callable[[], str] | None = None,
    ) -> None:
        self._format = format_
        self._names = frozenset(names)
        self._make_id = make_id or (short_id if format_.short_ids else long_id)
        self._state: Literal["start", "text", "between", "call", "name"] = (
            "text" if format_.begin else "start"
        )
        self._held = ""
        self._raw = ""
        """What was read since the last thing that was certain, in case it is no call."""
        self._reader = CallReader()
        self._told = False
        self._skips_space = False
        self.num_calls = 0

    def feed(self, text: str) -> Parsed:
        found = Parsed()
        self._held += text
        while self._held and self._turn(found):
            pass
        return found

    def finish(self) -> Parsed:
        """What was held for what did not come."""
        found = Parsed()
        if self._state in ("start", "text"):
            rest = self._held
            found.content = rest if self.num_calls == 0 or rest.strip() else ""
        elif self._state == "between":
            rest = _BETWEEN.sub("", self._held, count=1)
            is_end = self.num_calls > 0 and self._format.end.startswith(rest)
            found.content = (
                "" if is_end or (self.num_calls and not rest) else self._raw + self._held
            )
        elif not self._told:
            found.content = self._raw + self._held
        self._held = ""
        return found

    def _turn(self, found: Parsed) -> bool:
        """Advance; False while more text is needed."""
        match self._state:
            case "start":
                return self._start()
            case "text":
                return self._text(found)
            case "between":
                return self._look_between(found)
            case "name":
                return self._look_for_name(found)
            case "call":
                return self._call(found)

    def _start(self) -> bool:
        """Without marks: an answer that begins with a brace may be a call."""
        lead = self._format.lead
        text = self._held.lstrip()
        if not text or (len(text) < len(lead) and lead.startswith(text)):
            return False
        rest = text.removeprefix(lead).lstrip() if lead else text
        if not rest:
            return False
        if rest[0] != "{":
            self._state = "text"
            return True
        self._raw = self._held[: len(self._held) - len(rest)]
        self._held = rest
        self._begin_call()
        return True

    def _text(self, found: Parsed) -> bool:
        """Content, until the mark; what may be the beginning of it, and the space before it, is
        held. Space between calls is not content."""
        begin = self._format.begin
        if self._skips_space:
            self._held = self._held.lstrip()
            self._skips_space = not self._held
        place = self._held.find(begin) if begin else -1
        if place >= 0:
            found.content += self._held[:place].rstrip()
            self._raw = self._held[len(self._held[:place].rstrip()) : place + len(begin)]
            self._held = self._held[place + len(begin) :]
            self._state = "between"
            return True
        sure = len(self._held[: len(self._held) - _overlap(self._held, begin)].rstrip())
        if not begin:
            sure = len(self._held)
        found.content += self._held[:sure]
        self._held = self._held[sure:]
        return False

    def _look_between(self, found: Parsed) -> bool:
        """After a mark or a call: another call, the closing mark, or text."""
        end = self._format.end
        gap = _BETWEEN.match(self._held)
        place = gap.end() if gap else 0
        rest = self._held[place:]
        if not rest or (end and len(rest) < len(end) and end.startswith(rest)):
            return False
        if rest[0] == "{":
            self._move(place)
            self._begin_call()
            return True
        if end and rest.startswith(end):
            if self._raw:
                return self._not_a_call(found)
            self._held = rest[len(end) :]
            self._raw, self._state, self._skips_space = "", "text", self.num_calls > 0
            return True
        if self._format.begin and rest.startswith(self._format.begin) and self.num_calls:
            self._raw, self._state = "", "text"
            return True
        if self._format.may_name and self._format.begin in self._raw:
            self._state = "name"
            return True
        return self._not_a_call(found)

    def _look_for_name(self, found: Parsed) -> bool:
        match = _NAME.match(self._held)
        if match is None:
            if len(self._held) < _MAX_NAME and "{" not in self._held:
                return False
            return self._not_a_call(found)
        self._held = self._held[match.end() :]
        self._tell(found, match[1], match[2])
        self._reader = CallReader.of_arguments(match[1])
        self._state = "call"
        return True

    def _begin_call(self) -> None:
        self._reader, self._told, self._state = CallReader(), False, "call"

    def _call(self, found: Parsed) -> bool:
        used, arguments = self._reader.feed(self._held)
        self._move(used)
        name = self._reader.name
        if name is not None and not self._told:
            if not self._format.begin and name not in self._names:
                return self._not_a_call(found)
            self._tell(found, name, None)
        if arguments:
            found.calls.append(CallDelta(self.num_calls - 1, arguments))
        if self._reader.failed:
            return self._not_a_call(found)
        if self._reader.done:
            self._raw, self._told, self._state = "", False, "between"
            return True
        return False

    def _tell(self, found: Parsed, name: str, id_: str | None) -> None:
        found.calls.append(CallDelta(self.num_calls, "", id_ or self._make_id(), name))
        self.num_calls += 1
        self._told = True

    def _not_a_call(self, found: Parsed) -> bool:
        """All that was read for a call is text after all; what was given out of it stays so."""
        raw = "" if self._told else self._raw
        self._held = raw + self._held
        self._raw, self._told, self._state = "", False, "text"
        begin = self._format.begin
        if begin and begin in self._held[: len(raw)]:
            cut = self._held.index(begin) + len(begin)
            found.content += self._held[:cut]
            self._held = self._held[cut:]
        return True

    def _move(self, size: int) -> None:
        self._raw += self._held[:size]
        self._held = self._held[size:]


def long_id() -> str:
    return f"call_{secrets.token_hex(12)}"


def short_id() -> str:
    """Nine letters and digits, which Mistral's templates insist on."""
    return "".join(secrets.choice(_LETTERS) for _ in range(9))


def _overlap(text: str, mark: str) -> int:
    """Length of the longest end of `text` that begins `mark`."""
    for size in range(min(len(text), len(mark) - 1), 0, -1):
        if text.endswith(mark[:size]):
            return size
    return 0
