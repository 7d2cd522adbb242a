"""Where the last few tokens were seen before, and what followed them there."""

from collections.abc import Sequence

LONG, SHORT = 4, 2
"""Tokens that must agree. Four in a row rarely do so by chance; two find more, and less surely."""


class NgramIndex:
    """The latest place of every run of `LONG` and of `SHORT` tokens in one text; a token costs the
    same wherever it comes. (Prompt lookup decoding, Saxena 2023.)"""

    def __init__(self) -> None:
        self._long: dict[tuple[int, ...], int] = {}
        self._short: dict[tuple[int, ...], int] = {}
        self._known = 0

    def extend(self, tokens: Sequence[int], most: int) -> bool:
        """Take in up to `most` tokens that have come to the end; whether that was all of them."""
        end = min(len(tokens), self._known + most)
        for place in range(self._known, end):
            if place >= LONG:
                self._long[tuple(tokens[place - LONG : place])] = place
            if place >= SHORT:
                self._short[tuple(tokens[place - SHORT : place])] = place
        self._known = end
        return end == len(tokens)

    def find(self, tokens: Sequence[int]) -> tuple[int, bool] | None:
        """The place of what followed the last tokens when they were there before, and whether
        `LONG` of them agree."""
        place = self._long.get(tuple(tokens[-LONG:]))
        if place is not None:
            return place, True
        place = self._short.get(tuple(tokens[-SHORT:]))
        return None if place is None else (place, False)


def continuation(tokens: Sequence[int], place: int, count: int) -> list[int]:
    """The `count` tokens from `place` on; where the text ends before, it goes on repeating what
    lies between the two places that agree."""
    found = list(tokens[place : place + count])
    period = len(tokens) - place
    while len(found) < count:
        found.append(found[len(found) - period])
    return found
