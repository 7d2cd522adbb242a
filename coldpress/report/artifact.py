"""What the report knows about an artifact; a figure that nobody recorded is None, never guessed."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
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
class Evaluation:
    """The figures of `coldpress eval`; those that compare are None without a baseline.

    source: the file that they were read from. `*_se` are standard errors.
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
