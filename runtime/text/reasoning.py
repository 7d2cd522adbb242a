"""A model's thoughts told apart from its answer, where its template has marks for them."""

import re

OPEN, CLOSE = "<think>", "</think>"
_MAY_END = re.compile(r"\s*(?:<(?:/(?:t(?:h(?:i(?:n(?:k)?)?)?)?)?)?)?\Z")
"""Space, and what may be the beginning of CLOSE, at the end of a text."""


def has_reasoning(template: str) -> bool:
    """Whether a chat template is of a model that thinks between OPEN and CLOSE."""
    return CLOSE in template


class ReasoningSplitter:
    """Text in pieces in, (thoughts, answer) out. The marks belong to neither, nor does the space
    around them; without OPEN at its beginning all is answer.

    inside: the prompt has opened the thoughts already, as some templates do.
    """

    def __init__(self, *, inside: bool) -> None:
        self._held = ""
        self.thinks = inside
        """Whether what came last was a thought."""
        self._begins = True
        """Nothing but space and marks has come of what comes now."""
        self._settled = inside

    def feed(self, text: str) -> tuple[str, str]:
        """What is certain by now, however the text was cut."""
        if self._settled and not self.thinks:
            return "", self._trimmed(text)
        self._held += text
        if not self._settled and not self._open():
            return "", ""
        if not self.thinks:
            return "", self._take(len(self._held))
        end = self._held.find(CLOSE)
        if end < 0:
            found = _MAY_END.search(self._held)
            return self._trimmed(self._take(found.start() if found else len(self._held))), ""
        thoughts = self._trimmed(self._take(end).rstrip())
        self.thinks, self._begins = False, True
        return thoughts, self._trimmed(self._take(len(self._held))[len(CLOSE) :])

    def finish(self) -> tuple[str, str]:
        """What was held for a mark that did not come."""
        rest = self._take(len(self._held))
        return (self._trimmed(rest.rstrip()), "") if self.thinks else ("", rest)

    def _open(self) -> bool:
        """Look for OPEN at the beginning; False while it may yet come."""
        start = self._held.lstrip()
        if len(start) < len(OPEN) and OPEN.startswith(start):
            return False
        self._settled = True
        self.thinks = self._begins = start.startswith(OPEN)
        if self.thinks:
            self._held = start[len(OPEN) :]
        return True

    def _take(self, size: int) -> str:
        taken, self._held = self._held[:size], self._held[size:]
        return taken

    def _trimmed(self, text: str) -> str:
        if self._begins:
            text = text.lstrip()
            self._begins = not text
        return text
