"""What a step computes on its way, and how long each of it is kept."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from compile.dataflow import inputs
from compile.program import Op, RmsNorm, RopeSpec, Value
from runtime.executors.cuda.arrays import StepArrays
from runtime.executors.cuda.forms import Rows

HIDDEN = "hidden"
"""The value that logits are made of, kept for whoever asks for it."""


@dataclass(eq=False)
class Run:
    """One step in progress: its arrays, and the values that are still to be read."""

    arrays: StepArrays
    values: dict[Value, Rows] = field(default_factory=dict)

    def tensor(self, name: Value) -> Tensor:
        value = self.values[name]
        assert isinstance(value, Tensor)
        return value


Action = Callable[[Run], None]


@dataclass(frozen=True)
class Part:
    """Columns [start, start + size) of a wider value."""

    parent: Value
    start: int
    size: int


@dataclass(frozen=True)
class Heads:
    """Queries or keys whose norm and rotation wait for the kernel that stores them."""

    source: Value
    norm: RmsNorm | None = None
    rope: RopeSpec | None = None


class Lifetimes:
    """Counts who still has to read a value, so that its memory is used again after the last one."""

    def __init__(self, readers: Mapping[Value, Sequence[Op]]) -> None:
        self.parts: dict[Value, Part] = {}
        self.heads: dict[Value, Heads] = {}
        self._left = {name: len(ops) for name, ops in readers.items()}
        self._living_parts: dict[Value, int] = {}

    def part(self, name: Value, part: Part) -> None:
        """The whole lives as long as one of its parts."""
        self.parts[name] = part
        self._living_parts[part.parent] = self._living_parts.get(part.parent, 0) + 1

    def done(self, ops: Sequence[Op]) -> Action:
        """Drops the values that these ops were the last to read, so that memory is used again."""
        dead = []
        for op in ops:
            for name in inputs(op):
                dead += self._read(name)

        def drop(run: Run) -> None:
            for name in dead:
                run.values.pop(name, None)

        return drop

    def _read(self, name: Value) -> list[Value]:
        heads = self.heads.get(name)
        if heads is not None:
            return self._read_source(heads.source)
        return self._read_source(name)

    def _read_source(self, name: Value) -> list[Value]:
        self._left[name] -= 1
        if self._left[name] > 0:
            return []
        part = self.parts.get(name)
        if part is None:
            return [name]
        self._living_parts[part.parent] -= 1
        return [name] if self._living_parts[part.parent] else [name, part.parent]
