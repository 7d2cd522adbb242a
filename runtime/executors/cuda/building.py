"""What lowering knows while the list of actions grows."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from compile.dataflow import readers
from compile.program import Add, Linear, Program, RopeSpec, SumRanks, Value
from runtime.executors.cuda.values import Action, Lifetimes
from runtime.executors.cuda.weights import DeviceWeights
from runtime.kernels.triton.cache import LayerCache, RopeTable
from runtime.kernels.triton.rounded import Numbers

OverRanks = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class OtherRanks:
    """The processes that share the model: sum gives the sum of a tensor over all of them, max the
    largest of each of its numbers."""

    sum: OverRanks
    max: OverRanks


class Building:
    """The actions so far, and what later ones need to know of the values that they leave.

    widths: columns of each value. sums: residual sums that wait for the norm that reads them.
    """

    def __init__(
        self,
        program: Program,
        weights: DeviceWeights,
        caches: Sequence[LayerCache],
        ranks: OtherRanks | None,
    ) -> None:
        self.program = program
        self.weights = weights
        self.caches = caches
        self.ranks = ranks
        self.actions: list[Action] = []
        self.readers = readers(program.ops)
        self.life = Lifetimes(self.readers)
        self.widths: dict[Value, int] = {}
        self.sums: dict[Value, Add] = {}
        self.ropes: dict[RopeSpec, RopeTable] = {}
        self._summed = {op.x for op in program.ops if isinstance(op, SumRanks)}

    def wanted_numbers(self, name: Value) -> Numbers | None:
        """What all readers of a value want it rounded to; None where one wants it as it is."""
        ops = self.readers.get(name, [])
        wanted = {
            self.weights.rounds(op.weight)
            if isinstance(op, Linear) and not self.is_shared(op)
            else None
            for op in ops
        }
        return wanted.pop() if len(wanted) == 1 else None

    def is_shared(self, op: Linear) -> bool:
        """Whether this rank has only some columns of the linear's input."""
        return op.out in self._summed
