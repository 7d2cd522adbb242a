"""Counts by bucket, cheap enough to be taken for every token."""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import accumulate

TTFT_BOUNDS = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
ITL_BOUNDS = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
FINE_ITL_BOUNDS = (0.001, 0.0025, 0.005, *ITL_BOUNDS)
REQUEST_BOUNDS = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0),
    *(60.0, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
FINE_REQUEST_BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.2, *REQUEST_BOUNDS)
CHOICE_BOUNDS = (1.0, 2.0, 5.0, 10.0, 20.0)


def token_bounds(most: int) -> tuple[float, ...]:
    """1, 2, 5, 10, 20, 50 and so on, not past `most`."""
    bounds: list[float] = []
    power = 1
    while power <= most:
        bounds += [float(power * digit) for digit in (1, 2, 5) if power * digit <= most]
        power *= 10
    return tuple(bounds)


class Histogram:
    """How many values were at most each bound, and their sum. For one thread."""

    __slots__ = ("_counts", "bounds", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.sum = 0.0
        self._counts = [0] * (len(bounds) + 1)

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    @property
    def count(self) -> int:
        return sum(self._counts)

    def buckets(self, bounds: Sequence[float] | None = None) -> list[tuple[str, float]]:
        """Cumulative counts as Prometheus writes them, up to "+Inf"; at `bounds`, which are some
        of its own, or at all of them."""
        totals = dict(zip((*self.bounds, float("inf")), accumulate(self._counts), strict=True))
        wanted = (*(self.bounds if bounds is None else bounds), float("inf"))
        return [("+Inf" if b == float("inf") else str(float(b)), totals[b]) for b in wanted]
