"""What a rule says, and how sayings of one kind become one finding."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Target = Literal["onnxruntime", "tensorrt"]
Level = Literal["refused", "wrong", "slow", "note"]
"""refused: will not be read or built. wrong: runs, and may compute something else. slow: runs, many
times slower than it could. note: something for whoever runs it to heed."""
LEVELS: tuple[Level, ...] = ("refused", "wrong", "slow", "note")

ORT: tuple[Target, ...] = ("onnxruntime",)
TRT: tuple[Target, ...] = ("tensorrt",)
BOTH: tuple[Target, ...] = (*ORT, *TRT)


@dataclass(frozen=True)
class Said:
    """One rule about one node or tensor. Sentences of one kind are the same for all nodes."""

    rule: str
    level: Level
    targets: tuple[Target, ...]
    node: str
    sentence: str
    fix: str


@dataclass(frozen=True)
class Finding:
    """One rule about all nodes or tensors that it says the same of, in the graph's order."""

    rule: str
    level: Level
    targets: tuple[Target, ...]
    sentence: str
    fix: str
    nodes: tuple[str, ...]


def gathered(said: Iterable[Said]) -> list[Finding]:
    """The worst first, then by rule."""
    kinds: dict[tuple[str, Level, tuple[Target, ...], str, str], list[str]] = {}
    for one in said:
        kind = (one.rule, one.level, one.targets, one.sentence, one.fix)
        kinds.setdefault(kind, []).append(one.node)
    found = [Finding(*kind, tuple(nodes)) for kind, nodes in kinds.items()]
    return sorted(found, key=lambda f: (LEVELS.index(f.level), int(f.rule[1:])))
