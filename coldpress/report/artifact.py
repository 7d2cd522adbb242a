"""What the report knows about an artifact; a figure that nobody recorded is None, never guessed."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

AS_ASKED = "as asked"
KEPT = "kept in 16 bit"
ERRORS = ("output_error", "weight_error")
"""Relative errors of a module, the more telling one first."""

_IN_LAYER = re.compile(r"(?:^|\.)(?:layers|blk|h)\.(\d{1,9})\.(.+)")
_INDEX = re.compile(r"\.\d+(?=\.|$)")


@dataclass(frozen=True)
class Module:
    """One linear. `figures`: every number that quantizing recorded about it, by name."""

    name: str
    scheme: str
    algorithm: str
    state: str
    figures: Mapping[str, float | int | None]

    @property
    def as_asked(self) -> bool:
        return self.state == AS_ASKED

    @property
    def mark(self) -> str:
        """How it stands out: "" (as asked), "kept" (nothing was lost), or "warn"."""
        if self.as_asked:
            return ""
        return "kept" if self.state.startswith(KEPT) else "warn"


@dataclass(frozen=True)
class Tensor:
    """One weight as it is stored; `bytes` include its scales and zero points."""

    name: str
    scheme: str
    parameters: int
    bytes: int

    @property
    def bits(self) -> float:
        return 8 * self.bytes / self.parameters


@dataclass(frozen=True)
class Histogram:
    """counts[0] lie below edges[0], counts[i] in [edges[i - 1], edges[i]), the last above all."""

    edges: tuple[float, ...]
    counts: tuple[int, ...]

    def shares(self) -> list[tuple[float, float, float]]:
        """(from, to, share of all) of each bin that has two edges; what lies outside of them all
        counts for the bin beside it."""
        total = sum(self.counts)
        inner = list(self.counts[1:-1])
        inner[0] += self.counts[0]
        inner[-1] += self.counts[-1]
        return [
            (low, high, count / total)
            for low, high, count in zip(self.edges, self.edges[1:], inner, strict=False)
        ]


@dataclass(frozen=True)
class Evaluation:
    """The figures of `coldpress eval`; those that compare are None without a baseline.

    source: the file that they were read from. `*_se` are standard errors. intervals: 95 %, by the
    names that gates use; an end that is not known is None. text: sha256 of the text.
    """

    source: str
    perplexity: float | None
    perplexity_se: float | None
    ppl_ratio: float | None
    baseline_perplexity: float | None
    kld: float | None
    kld_se: float | None
    kld_p99: float | None
    kld_max: float | None
    top1: float | None
    top1_se: float | None
    tokens: int | None
    window: int | None
    protocol: str | None = None
    text: str | None = None
    kld_median: float | None = None
    kld_p90: float | None = None
    kld_p95: float | None = None
    kld_p999: float | None = None
    delta_p_rms: float | None = None
    ln_ppl_ratio: float | None = None
    ln_ppl_ratio_se: float | None = None
    intervals: Mapping[str, tuple[float | None, float | None]] = field(default_factory=dict)
    histogram: Histogram | None = None


@dataclass(frozen=True)
class Run:
    """One concurrency of `coldpress bench`; tokens per second."""

    concurrency: int | None
    prefill: float | None
    decode: float | None


@dataclass(frozen=True)
class Artifact:
    """One directory. `missing`: a sentence for each thing that it does not record."""

    name: str
    path: Path
    kind: str
    made_from: tuple[str, ...]
    recipe: str | None
    calibration: str | None
    bytes: int
    bits_per_weight: float | None
    modules: tuple[Module, ...]
    tensors: tuple[Tensor, ...]
    evaluation: Evaluation | None
    runs: tuple[Run, ...]
    missing: tuple[str, ...]

    def not_as_asked(self) -> list[Module]:
        return [module for module in self.modules if not module.as_asked]

    def error_name(self) -> str | None:
        """The more telling error that this artifact records; None where it records none."""
        for error in ERRORS:
            if any(module.figures.get(error) is not None for module in self.modules):
                return error
        return None


def place(name: str) -> tuple[int, str] | None:
    """Layer and part of a module or tensor: (3, "mlp.experts.*.up_proj"); None outside layers.

    Experts share one part, so that a layer of them is one cell of a map.
    """
    match = _IN_LAYER.search(name)
    if match is None:
        return None
    return int(match[1]), _INDEX.sub(".*", match[2].removesuffix(".weight"))


def layer_errors(artifact: Artifact, error: str) -> dict[int, float]:
    """Mean of an error over the modules of each layer that record it."""
    found: dict[int, list[float]] = {}
    for module in artifact.modules:
        where, value = place(module.name), module.figures.get(error)
        if where is not None and value is not None:
            found.setdefault(where[0], []).append(value)
    return {layer: sum(values) / len(values) for layer, values in sorted(found.items())}


def layer_worst(artifact: Artifact, figure: str) -> dict[int, float]:
    """Greatest value of a figure among the modules of each layer that record it."""
    found: dict[int, float] = {}
    for module in artifact.modules:
        where, value = place(module.name), module.figures.get(figure)
        if where is not None and value is not None:
            found[where[0]] = max(value, found.get(where[0], value))
    return dict(sorted(found.items()))


def layer_bits(artifact: Artifact) -> dict[int, float]:
    """Bits per weight of each layer: all its tensors, norms included."""
    bits: dict[int, int] = {}
    weights: dict[int, int] = {}
    for tensor in artifact.tensors:
        where = place(tensor.name)
        if where is not None:
            bits[where[0]] = bits.get(where[0], 0) + 8 * tensor.bytes
            weights[where[0]] = weights.get(where[0], 0) + tensor.parameters
    return {layer: bits[layer] / weights[layer] for layer in sorted(bits)}
