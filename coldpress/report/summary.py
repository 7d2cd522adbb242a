"""What every form of the report says in words: the comparison, conditions, and states."""

import math
from collections import Counter
from collections.abc import Callable, Sequence

from coldpress.report.artifact import Artifact, Evaluation, Run
from coldpress.tables import human_bytes

COLUMNS = (
    "artifact",
    "kind",
    "made from",
    "size",
    "bits/weight",
    "perplexity",
    "ratio",
    "KLD mean",
    "KLD p99",
    "KLD max",
    "top-1",
    "tokens/s",
)
FIRST_NUMBER = 3
"""Columns from here on hold numbers."""
NOTHING = "-"


def comparison_row(artifact: Artifact) -> list[str]:
    """The cells of COLUMNS; "-" where nothing was measured."""
    cells = [artifact.name, artifact.kind, ", ".join(artifact.made_from) or NOTHING]
    cells += [human_bytes(artifact.bytes), decimals(artifact.bits_per_weight, 2)]
    e = artifact.evaluation
    if e is None:
        cells += [NOTHING] * 6
    else:
        cells += [
            with_error(e.perplexity, e.perplexity_se, 2),
            decimals(e.ppl_ratio, 4),
            with_error(e.kld, e.kld_se, 4),
            digits(e.kld_p99),
            digits(e.kld_max),
            percent(e.top1, e.top1_se),
        ]
    return [*cells, speed(artifact.runs)]


QUALITY = (
    "artifact",
    "KLD mean (95%)",
    "median",
    "p90",
    "p95",
    "p99",
    "p99.9",
    "max",
    "top-1 (95%)",
    "RMS of Δp",
    "ln ratio",
)
"""The second table: how far each artifact is from its baseline."""


def quality_row(artifact: Artifact) -> list[str] | None:
    """The cells of QUALITY; None without a comparison with a baseline."""
    e = artifact.evaluation
    if e is None or e.kld is None:
        return None
    quantiles = (e.kld_median, e.kld_p90, e.kld_p95, e.kld_p99, e.kld_p999, e.kld_max)
    return [
        artifact.name,
        _with_interval(digits(e.kld), e.intervals.get("kld"), digits),
        *(digits(value) for value in quantiles),
        _with_interval(percent(e.top1, None), e.intervals.get("top1"), _percent),
        digits(e.delta_p_rms),
        with_error(e.ln_ppl_ratio, e.ln_ppl_ratio_se, 4),
    ]


def _with_interval(
    shown: str,
    interval: tuple[float | None, float | None] | None,
    write: Callable[[float | None], str],
) -> str:
    if interval is None:
        return shown
    low, high = interval
    return f"{shown} ({write(low)} to {'∞' if high is None else write(high)})"


def _percent(value: float | None) -> str:
    return percent(value, None)


def speed(runs: Sequence[Run]) -> str:
    """Decoded tokens per second; with the number of streams where there are several."""
    shown = [f"{decimals(run.decode, 1)} ({run.concurrency or '?'})" for run in runs]
    return ", ".join(shown) or NOTHING


def digits(value: float | None) -> str:
    """A figure with four digits, or "-"."""
    return NOTHING if value is None else f"{value:.4g}"


def decimals(value: float | None, places: int) -> str:
    """A figure with so many decimals, or "-"; digits instead where it is too large for them."""
    return digits(value) if value is None or abs(value) >= 1e7 else f"{value:.{places}f}"


def with_error(value: float | None, error: float | None, places: int) -> str:
    """A mean and its standard error; decimals enough for two digits of the error."""
    if value is None or not error or error < 0:
        return decimals(value, places)
    places = min(9, max(places, 1 - math.floor(math.log10(error))))
    return f"{decimals(value, places)} ± {decimals(error, places)}"


def percent(value: float | None, error: float | None) -> str:
    """A share with its standard error."""
    if value is None:
        return NOTHING
    return f"{value:.1%}" if error is None else f"{value:.1%} ± {error:.1%}"


def conditions(name: str, evaluation: Evaluation) -> str:
    """How the figures of one artifact were measured."""
    e = evaluation
    said = [f"{e.tokens:,} tokens scored" if e.tokens is not None else "an unknown text"]
    if e.window is not None:
        said.append(f"windows of {e.window:,}")
    if e.protocol is not None:
        said.append(f"protocol '{e.protocol}'")
    if e.baseline_perplexity is not None:
        said.append(f"baseline perplexity {decimals(e.baseline_perplexity, 2)}")
    else:
        said.append("no baseline")
    return f"{name}: {', '.join(said)} (from {e.source})"


def missing(artifact: Artifact) -> list[str]:
    """A sentence for everything that this artifact has no figures for."""
    found = list(artifact.missing)
    if artifact.evaluation is None:
        found.append(
            "Not evaluated: run 'coldpress --json eval' and name its output after the directory."
        )
    elif artifact.evaluation.kld is None:
        found.append("Evaluated without a baseline, so the distance to the original is unknown.")
    return found


def states(artifact: Artifact) -> str:
    """How many modules ended as asked, in one sentence."""
    others = len(artifact.not_as_asked())
    total = len(artifact.modules)
    if not total:
        return "States of modules are not recorded here."
    if not others:
        return f"All {total} modules are as asked."
    return f"{others} of {total} modules {'is' if others == 1 else 'are'} not as asked."


def schemes(artifact: Artifact) -> str:
    """Tensors by scheme: "210 int4-sym-g64, 62 bfloat16"."""
    counts = Counter(tensor.scheme for tensor in artifact.tensors)
    return ", ".join(f"{count} {scheme}" for scheme, count in counts.most_common()) or NOTHING
