"""Which native buffer holds which value: values that are never alive together share one."""

from collections import defaultdict
from collections.abc import Sequence

from compile.program import Add, Attend, Embed, GatedAct, Op, Program, SelectRows, Value
from runtime.kernels.cpu._native import Plan


def inputs(op: Op) -> tuple[Value, ...]:
    """The values that an op reads."""
    match op:
        case Embed():
            return ()
        case Attend():
            return (op.q, op.k, op.v)
        case GatedAct():
            return (op.gate, op.up)
        case Add():
            return (op.a, op.b)
        case _:
            return (op.x,)


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
        self._free: dict[tuple[int, bool], list[int]] = defaultdict(list)
        self._rounded: dict[tuple[int, bool], int] = {}

    def create(self, value: Value, width: int) -> int:
        """A buffer of `width` for a new value."""
        buffer = self.scratch(width, value in self._selected)
        self._places[value] = (buffer, width)
        return buffer

    def scratch(self, width: int, selected: bool) -> int:
        """A buffer that no value owns; give it back with `recycle`."""
        free = self._free[width, selected]
        return free.pop() if free else self._plan.add_buffer(width, selected)

    def recycle(self, buffer: int, width: int, selected: bool) -> None:
        self._free[width, selected].append(buffer)

    def rounded(self, width: int, selected: bool) -> int:
        """The buffer for rows of int8, which the products that follow read at once: there is one
        of each kind."""
        if (width, selected) not in self._rounded:
            self._rounded[width, selected] = self._plan.add_rounded_buffer(width, selected)
        return self._rounded[width, selected]

    def is_selected(self, value: Value) -> bool:
        return value in self._selected

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
                    self.recycle(buffer, width, name in self._selected)
