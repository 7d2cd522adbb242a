"""Axes: from figures to positions, and the round figures that are written beside them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Axis:
    """Maps `low`..`high` to `start`..`end`, in equal steps or in equal ratios."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        """Where `value` is drawn; at the nearest end where it lies outside."""
        value = min(self.high, max(self.low, value))
        low, high, here = self._scaled(self.low), self._scaled(self.high), self._scaled(value)
        return self.start + (here - low) / (high - low) * (self.end - self.start)

    def ticks(self, about: int = 6) -> list[float]:
        """Round figures within the axis."""
        if self.logarithmic:
            found = _powers(self.low, self.high)
            if len(found) >= 2:
                return found
        step = _round_step((self.high - self.low) / about)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]

    def _scaled(self, value: float) -> float:
        return math.log10(value) if self.logarithmic else value


def axis(
    values: Sequence[float],
    start: float,
    end: float,
    *,
    zero: bool = False,
    linear: bool = False,
) -> Axis:
    """An axis that holds `values` with some air; logarithmic where they span more than 20 times.

    zero: begin at zero, where the values are not logarithmic. linear: in equal steps anyway.
    """
    low, high = min(values), max(values)
    if not linear and low > 0 and high / low > 20:
        return Axis(low / 1.5, high * 1.5, start, end, logarithmic=True)
    air = (high - low) * 0.08 or abs(high) * 0.08 or 1.0
    return Axis(min(0.0, low) if zero else low - air, high + air, start, end)


def _round_step(step: float) -> float:
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * nice for nice in (1, 2, 5, 10) if power * nice >= step * 0.999)


def _powers(low: float, high: float) -> list[float]:
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    exponents = range(first, last + 1, max(1, (last - first) // 6))
    return [10.0**exponent for exponent in exponents if low <= 10.0**exponent <= high]
