"""Gates: conditions on measured figures, such as `kld<=0.05`, that a run must meet."""

import math
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

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
    """What came of one gate; `value` is NaN where the figure is not a number."""

    gate: Gate
    value: float

    @property
    def holds(self) -> bool:
        return self.gate.holds(self.value)

    def __str__(self) -> str:
        shown = "not a number" if math.isnan(self.value) else f"{self.value:.6g}"
        return f"{self.gate} (measured {shown})"


def judge_gates(gates: Sequence[Gate], figures: Mapping[str, Any]) -> list[Verdict]:
    """Every gate with what `figures` (the JSON of eval) say about it."""
    return [Verdict(gate, _measured(gate, figures)) for gate in gates]


def require_held(verdicts: Sequence[Verdict]) -> None:
    """Raises CheckFailedError naming every gate that was not met."""
    missed = [str(verdict) for verdict in verdicts if not verdict.holds]
    if missed:
        raise CheckFailedError(f"gate not met: {', '.join(missed)}")


def check_gates(gates: Sequence[Gate], figures: Mapping[str, Any]) -> None:
    """Raises CheckFailedError naming every gate that `figures` miss."""
    require_held(judge_gates(gates, figures))


def _measured(gate: Gate, figures: Mapping[str, Any]) -> float:
    value: Any = figures
    for key in METRICS[gate.metric]:
        value = value[key]
    # JSON has no word for what is not finite, so it stands there as null.
    return math.nan if value is None else float(value)
