"""Gates: conditions on measured figures, such as `kld<=0.05`, that a run must meet.

The rule: a gate holds when the whole 95 % interval of its figure is on the right side of the limit.
It fails when the whole interval is on the wrong side. In between it is undecided, which fails too,
and says how much more text would decide it. Sizes, and the largest divergence of a text, are no
estimates: for them the figure alone decides.
"""

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from quant.format.errors import CheckFailedError, InputError

METRICS: Mapping[str, tuple[str, ...]] = {
    "kld": ("kld", "mean"),
    "kld_p99": ("kld", "p99"),
    "kld_max": ("kld", "max"),
    "top1": ("top1", "mean"),
    "perplexity": ("perplexity",),
    "ppl_ratio": ("ppl_ratio",),
    "bits_per_weight": ("bits_per_weight",),
    "bytes": ("bytes",),
}
"""Name of each metric, and where it stands in the JSON of `coldpress eval`."""

NEEDS_BASELINE = frozenset({"kld", "kld_p99", "kld_max", "top1", "ppl_ratio"})

Outcome = Literal["holds", "fails", "undecided"]

_OPERATORS: Mapping[str, Callable[[float, float], bool]] = {
    "<=": operator.le,
    ">=": operator.ge,
    "<": operator.lt,
    ">": operator.gt,
}
_GATE = re.compile(r"\s*([a-z0-9_]+)\s*(<=|>=|<|>)\s*([-+.0-9eE]+)\s*")


@dataclass(frozen=True)
class Gate:
    """One condition: `metric` compared with `limit`."""

    metric: str
    comparison: str
    limit: float

    @property
    def needs_baseline(self) -> bool:
        return self.metric in NEEDS_BASELINE

    def holds(self, value: float) -> bool:
        """False for a value that is not a number, whichever way the comparison points."""
        return _OPERATORS[self.comparison](value, self.limit)

    def __str__(self) -> str:
        return f"{self.metric}{self.comparison}{self.limit:g}"


def parse_gates(texts: Iterable[str]) -> list[Gate]:
    """Raises InputError naming the first text that is no gate."""
    return [_parse(text) for text in texts]


def _parse(text: str) -> Gate:
    match = _GATE.fullmatch(text)
    if match is None:
        raise InputError(f"'{text}' is not a gate; write one like 'kld<=0.05'")
    metric, comparison, number = match.groups()
    if metric not in METRICS:
        known = ", ".join(METRICS)
        raise InputError(f"gate '{text}' names no metric that is measured; use one of {known}")
    try:
        return Gate(metric, comparison, float(number))
    except ValueError:
        raise InputError(f"gate '{text}' compares with '{number}', which is no number") from None


def require_baseline(gates: Sequence[Gate], baseline_given: bool) -> None:
    """Raises InputError, before anything is measured, when a gate could not be judged."""
    lacking = [str(gate) for gate in gates if gate.needs_baseline]
    if lacking and not baseline_given:
        raise InputError(f"gate {lacking[0]} compares with a baseline; add --baseline MODEL")


@dataclass(frozen=True)
class Verdict:
    """What came of one gate.

    value: NaN where the figure is not a number. interval: equal to (value, value) for a figure that
    is no estimate; an end may be infinite. tokens: how many were scored, None where not told.
    """

    gate: Gate
    value: float
    interval: tuple[float, float]
    tokens: int | None

    @property
    def outcome(self) -> Outcome:
        if math.isnan(self.value):
            return "fails"
        ends = [self.gate.holds(end) for end in self.interval]
        return "holds" if all(ends) else "undecided" if any(ends) else "fails"

    @property
    def holds(self) -> bool:
        return self.outcome == "holds"

    def more_tokens(self) -> int | None:
        """About how many more tokens would bring the whole interval to one side of the limit.

        An interval shrinks with the root of the text: one that reaches w towards the limit, d away,
        needs (w/d)^2 times the tokens. None where no text would do, or nothing is known.
        """
        low, high = self.interval
        reach = self.value - low if self.gate.limit < self.value else high - self.value
        distance = abs(self.value - self.gate.limit)
        if self.outcome != "undecided" or not self.tokens or distance == 0 or math.isinf(reach):
            return None
        wanted = self.tokens * ((reach / distance) ** 2 - 1)
        return math.ceil(wanted) if wanted < 1e15 else None

    def __str__(self) -> str:
        shown = "not a number" if math.isnan(self.value) else f"{self.value:.6g}"
        low, high = self.interval
        if low != high:
            shown += f", 95% interval {low:.6g} to {high:.6g}"
        if self.outcome != "undecided":
            return f"{self.gate} (measured {shown})"
        return f"{self.gate} is undecided (measured {shown}): {self._advice()}"

    def _advice(self) -> str:
        more = self.more_tokens()
        if more is not None:
            return f"about {_round_up(more):,} more tokens of text like this would decide it"
        if self.value == self.gate.limit:
            return "the figure is the limit itself, so no text would decide it; move the limit"
        return "the text is too short to tell; give a longer one"

    def to_json(self) -> dict[str, Any]:
        """For the JSON of a command: the gate, the estimate, its interval and the verdict."""
        return {
            "gate": str(self.gate),
            "metric": self.gate.metric,
            "limit": self.gate.limit,
            "estimate": self.value,
            "interval": list(self.interval),
            "verdict": self.outcome,
            "more_tokens": self.more_tokens(),
            "sentence": str(self),
        }


def judge_gates(gates: Sequence[Gate], figures: Mapping[str, Any]) -> list[Verdict]:
    """Every gate with what `figures` (the JSON of eval) say about it."""
    return [_judge(gate, figures) for gate in gates]


def record_verdicts(
    gates: Sequence[Gate], figures: Mapping[str, Any], outcome: dict[str, Any]
) -> list[Verdict]:
    """As `judge_gates`; what came of them also stands in `outcome`, the JSON of the command."""
    verdicts = judge_gates(gates, figures)
    if verdicts:
        outcome["gates"] = [verdict.to_json() for verdict in verdicts]
    return verdicts


def require_held(verdicts: Sequence[Verdict]) -> None:
    """Raises CheckFailedError naming every gate that was not met."""
    missed = [str(verdict) for verdict in verdicts if not verdict.holds]
    if missed:
        raise CheckFailedError(f"gate not met: {', '.join(missed)}")


def check_gates(gates: Sequence[Gate], figures: Mapping[str, Any]) -> None:
    """Raises CheckFailedError naming every gate that `figures` miss."""
    require_held(judge_gates(gates, figures))


def _judge(gate: Gate, figures: Mapping[str, Any]) -> Verdict:
    found: Any = figures
    for key in METRICS[gate.metric]:
        found = found[key]
    # JSON has no word for what is not finite, so it stands there as null.
    value = math.nan if found is None else float(found)
    low, high = figures.get("intervals", {}).get(gate.metric, (value, value))
    interval = (-math.inf if low is None else low, math.inf if high is None else high)
    return Verdict(gate, value, interval, figures.get("tokens"))


def _round_up(count: int) -> int:
    """Two leading digits: it is an estimate."""
    unit: int = 10 ** max(0, len(str(count)) - 2)
    return -(-count // unit) * unit
