"""Stop strings found in text that arrives in pieces."""

from collections.abc import Sequence


class StopMatcher:
    """Passes text on, holding back only what may be the beginning of a stop string.

    The stop string whose last character comes first wins; of those that end together, the longest.
    What comes out is therefore the same however the text was cut. One state of the
    Knuth-Morris-Pratt automaton per stop string makes a character's cost constant on average.
    """

    def __init__(self, stops: Sequence[str], *, included: bool = False) -> None:
        """`stops`: none of them empty. included: the one that is found is given out too."""
        assert all(stops), "an empty stop string would match everywhere"
        self._stops = tuple(stops)
        self._included = included
        self._fallbacks = [_fallbacks(stop) for stop in stops]
        self._matched = [0] * len(stops)
        self._held = ""
        self.matched: str | None = None
        """The stop string that was found; nothing is given out after it."""

    def feed(self, text: str) -> str:
        """The part of what was held and of `text` that is certain to come before any stop."""
        if not self._stops:
            return text
        if self.matched is not None:
            return ""
        pending = self._held + text
        for index, char in enumerate(text, start=len(self._held)):
            self._advance(char)
            if self.matched is not None:
                self._held = ""
                left_out = 0 if self._included else len(self.matched)
                return pending[: index + 1 - left_out]
        keep = len(pending) - max(self._matched)
        self._held = pending[keep:]
        return pending[:keep]

    def finish(self) -> str:
        """What was held for a stop string that did not come."""
        held, self._held = self._held, ""
        return held

    def _advance(self, char: str) -> None:
        found = ""
        for which, stop in enumerate(self._stops):
            state = self._matched[which]
            while state and stop[state] != char:
                state = self._fallbacks[which][state - 1]
            state += stop[state] == char
            self._matched[which] = state
            if state == len(stop) and len(stop) > len(found):
                found = stop
        if found:
            self.matched = found


def _fallbacks(stop: str) -> list[int]:
    """For each prefix, the length of its longest proper suffix that is a prefix of `stop`."""
    table = [0] * len(stop)
    length = 0
    for index in range(1, len(stop)):
        while length and stop[length] != stop[index]:
            length = table[length - 1]
        length += stop[length] == stop[index]
        table[index] = length
    return table
