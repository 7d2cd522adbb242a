"""How long a request that comes now will wait, from how long the last ones ran."""

_WEIGHT = 0.1
"""Of the latest request in what is remembered of all."""


class ServiceRate:
    """Little's law: with R requests running for S seconds each, R / S of them end each second, and
    as many may start."""

    def __init__(self) -> None:
        self._seconds: float | None = None

    def note(self, seconds: float) -> None:
        """A request has ended that long after it was let in."""
        before = seconds if self._seconds is None else self._seconds
        self._seconds = before + _WEIGHT * (seconds - before)

    def expected_wait(self, num_ahead: int, num_running: int, oldest_seconds: float) -> float:
        """Seconds until one behind `num_ahead` others may start. As long as none has ended, the
        running ones are believed to be half done; oldest_seconds: how long the first has run."""
        seconds = 2 * oldest_seconds if self._seconds is None else self._seconds
        return (num_ahead + 1) * seconds / max(1, num_running)
