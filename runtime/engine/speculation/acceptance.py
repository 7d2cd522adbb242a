"""How often the guesses for one answer come true."""

_DECAY, _FADING = 0.9, 0.98
"""What is left of the counts after one more try, and after a step without."""
_PRIOR_HITS, _PRIOR_MISSES = 2.0, 1.0


class Acceptance:
    """Fading counts of guesses that came true and that did not, from an opinion held beforehand.

    A guess behind a wrong one was not tried. What is not tried for a while fades, so that the
    opinion returns, and with it another try.
    """

    def __init__(self) -> None:
        self._hits = self._misses = 0.0

    @property
    def rate(self) -> float:
        """Probability of the next guess, if all before it come true."""
        hits = self._hits + _PRIOR_HITS
        return hits / (hits + self._misses + _PRIOR_MISSES)

    def note(self, num_drafts: int, num_accepted: int) -> None:
        """So many of the first guesses came true."""
        self._hits = _DECAY * self._hits + num_accepted
        self._misses = _DECAY * self._misses + (num_accepted < num_drafts)

    def fade(self) -> None:
        """A step went by without a try."""
        self._hits *= _FADING
        self._misses *= _FADING
