"""Which native buffer holds which value: values that are never alive together share one."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Literal

from compile.dataflow import inputs
from compile.program import Op, Program, SelectRows, Value
from runtime.kernels.cpu._native import Plan

Rows = Literal["tokens", "selected", "routed"]
"""How many rows a buffer has: one for each token, for each row that needs logits, or for each token
that is sent to the expert whose turn it is."""


def selected_values(program: Program) -> frozenset[Value]:
    """The values that have R rows and not T: all that follows a SelectRows."""
    selected: set[Value] = set()
    for op in program.ops:
        if isinstance(op, SelectRows) or any(name in selected for name in inputs(op)):
            selected.add(op.out)
    return frozenset(selected)


class Buffers:
    """Hands out a plan's buffers and takes them back when their value is read for the last time."""

    def __init__(self, plan: Plan, program: Program) -> None:
        self._plan = plan
        self._selected = selected_values(program)
        self._reads: dict[Value, int] = defaultdict(int)
        for op in program.ops:
            for name in inputs(op):
                self._reads[name] += 1
        self._places: dict[Value, tuple[int, int]] = {}
        self._free: dict[tuple[int, Rows], list[int]] = defaultdict(list)
        self._rounded: dict[tuple[int, Rows], int] = {}

    def create(self, value: Value, width: int) -> int:
        """A buffer of `width` for a new value."""
        buffer = self.scratch(width, self.rows(value))
        self._places[value] = (buffer, width)
        return buffer

    def scratch(self, width: int, rows: Rows) -> int:
        """A buffer that no value owns; give it back with `recycle`."""
        free = self._free[width, rows]
        if free:
            return free.pop()
        return self._plan.add_buffer(width, rows == "selected", rows == "routed")

    def recycle(self, buffer: int, width: int, rows: Rows) -> None:
        self._free[width, rows].append(buffer)

    def rounded(self, width: int, rows: Rows) -> int:
        """The buffer for rows of int8, which the products that follow read at once: there is one
        of each kind."""
        if (width, rows) not in self._rounded:
            kind = rows == "selected", rows == "routed"
            self._rounded[width, rows] = self._plan.add_rounded_buffer(width, *kind)
        return self._rounded[width, rows]

    def rows(self, value: Value) -> Rows:
        return "selected" if value in self._selected else "tokens"

    def __getitem__(self, value: Value) -> int:
        return self._places[value][0]

    def width(self, value: Value) -> int:
        return self._places[value][1]

    def release(self, ops: Sequence[Op]) -> None:
        """Count the reads of ops that are lowered; free what nobody reads any more."""
        for op in ops:
            for name in inputs(op):
                self._reads[name] -= 1
                if self._reads[name] == 0:
                    buffer, width = self._places.pop(name)
                    self.recycle(buffer, width, self.rows(name))
