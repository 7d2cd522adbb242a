"""What the samples say about each bound."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf, sqrt
from statistics import fmean
from typing import Any

from benchmarks.soak.clients import Books
from benchmarks.soak.watching import Sample

MB = 1_000_000
MOST_MB_PER_HOUR = 1.0
_T95 = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 8: 2.31, 10: 2.23, 15: 2.13}
"""Student's t for 95 % on both sides, by degrees of freedom; 2.0 from 30 on."""


@dataclass(frozen=True)
class Slope:
    """Of the straight line through points with the least squares, and half of the interval that
    holds it with 95 % probability if what lies beside the line is chance."""

    each: float
    margin: float


def slope(points: Sequence[tuple[float, float]]) -> Slope:
    x0, y0 = fmean(x for x, _ in points), fmean(y for _, y in points)
    spread = sum((x - x0) ** 2 for x, _ in points)
    if not spread:
        return Slope(0.0, inf)
    each = sum((x - x0) * (y - y0) for x, y in points) / spread
    free = len(points) - 2
    if free < 1:
        return Slope(each, inf)
    beside = sum((y - y0 - each * (x - x0)) ** 2 for x, y in points)
    factor = next((t for most, t in sorted(_T95.items(), reverse=True) if most <= free), 12.71)
    return Slope(each, (2.04 if free >= 30 else factor) * sqrt(beside / free / spread))


def falls(samples: Sequence[Sample]) -> list[str]:
    """Counters that were lower at some moment than at the one before."""
    return sorted(
        {
            name
            for earlier, later in pairwise(samples)
            for name, value in earlier.counters.items()
            if "_total" in name and later.counters.get(name, 0.0) < value
        }
    )


def figures(samples: Sequence[Sample], books: Books) -> dict[str, Any]:
    """Growth is over the second half of the samples, when caches have filled."""
    half = samples[len(samples) // 2 :]
    before, after = (
        family(one.counters, "coldpress_answers_total") for one in (samples[0], samples[-1])
    )
    finished: Counter[str] = Counter()
    for labels in after:
        reason = labels.partition('finish_reason="')[2].partition('"')[0]
        finished[reason] += int(after[labels] - before.get(labels, 0))
    growth = slope([(one.seconds, one.private_bytes) for one in half])
    return {
        "seconds": samples[-1].seconds,
        "accepted": books.accepted,
        "outcomes": dict(books.outcomes),
        "finished": dict(finished),
        "counters_fell": falls(samples),
        "private_mb": [half[0].private_bytes / MB, half[-1].private_bytes / MB],
        "resident_mb": [half[0].resident_bytes / MB, half[-1].resident_bytes / MB],
        "samples_at_rest": len(half),
        "mb_per_hour": 3600 * growth.each / MB,
        "mb_per_hour_margin": 3600 * growth.margin / MB,
        "descriptors": sorted({one.descriptors for one in half}),
        "pages_in_use_at_end": family(samples[-1].counters, "coldpress_pages_in_use"),
    }


def verdicts(found: Mapping[str, Any]) -> dict[str, tuple[bool | None, str]]:
    """Of each bound whether it holds, None where that cannot be told, and in which figures."""
    each, margin = found["mb_per_hour"], found["mb_per_hour_margin"]
    first, last = found["private_mb"]
    ended, used = sum(found["finished"].values()), sum(found["pages_in_use_at_end"].values())
    spread = found["descriptors"]
    memory = None
    if each + margin < MOST_MB_PER_HOUR:
        memory = True
    elif each - margin > MOST_MB_PER_HOUR:
        memory = False
    return {
        f"memory grows by less than {MOST_MB_PER_HOUR:g} MB an hour": (
            memory,
            f"{each:+.2f} MB an hour, +- {margin:.2f} (95 %), from {found['samples_at_rest']} "
            f"samples at rest; {first:.2f} MB at first, {last:.2f} at last",
        ),
        "descriptors stay the same": (
            spread[0] == spread[-1],
            f"{spread[0]} to {spread[-1]} at rest",
        ),
        "no counter falls": (not found["counters_fell"], ", ".join(found["counters_fell"]) or "-"),
        "what was accepted has ended for one reason": (
            ended == found["accepted"],
            f"{found['accepted']} accepted, {ended} ended: "
            + ", ".join(f"{count} {name}" for name, count in found["finished"].items() if count),
        ),
        "no page is in use at the end": (used == 0, f"{used:g} pages"),
    }


def summary(found: Mapping[str, Any]) -> str:
    """A line for each bound."""
    words = {True: "holds", False: "FAILS", None: "cannot be told"}
    lines = [f"{name}: {words[holds]} ({how})" for name, (holds, how) in verdicts(found).items()]
    clients = ", ".join(f"{count} {name}" for name, count in sorted(found["outcomes"].items()))
    return "\n".join([f"{found['seconds']:.0f} s; clients: {clients}", *lines])


def family(counters: Mapping[str, float], name: str) -> dict[str, float]:
    """All samples of one metric, by their labels."""
    return {key[len(name) :]: value for key, value in counters.items() if key.startswith(name)}
