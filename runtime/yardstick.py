"""What a machine can do at the most, and what a model's steps have to do at the least."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from compile.model import Model
from compile.program import Embed, Linear, Logits, Moe
from runtime.footprint import held_bytes
from runtime.kernels.cpu._native import Probe, ThreadPool

Clock = Callable[[], float]
PROBED_BYTES = 1 << 28
"""More than caches hold."""
PROBED_ROUNDS = 1 << 20
"""Some ten milliseconds of products."""


@dataclass(frozen=True)
class Fractions:
    """Parts of what the machine can do at the most."""

    bandwidth: float
    int8: float

    @property
    def limit(self) -> float:
        """Of the limit that is nearer."""
        return max(self.bandwidth, self.int8)


@dataclass(frozen=True)
class Yardstick:
    """What steps have to do, beside what the machine can do: nothing unless told.

    dense_bytes: of weights, read once in each step. expert_bytes: of all experts, of which a step
    reads `expert_share` for each of its tokens, and all at the most. cache_bytes: of the keys and
    values of one token. token_operations: products with weights and their additions, for each
    token; row_operations: for each row of logits. The two rates are per second.
    """

    dense_bytes: float = 0.0
    expert_bytes: float = 0.0
    expert_share: float = 0.0
    cache_bytes: float = 0.0
    token_operations: float = 0.0
    row_operations: float = 0.0
    read_bytes: float = float("inf")
    int8_operations: float = float("inf")

    def fractions(
        self, *, steps: int, tokens: int, rows: int, context: float, seconds: float
    ) -> Fractions:
        """Of `steps` steps that computed `tokens` tokens in `seconds`, `rows` of which gave logits.
        context: tokens whose keys and values a token's row reads."""
        if seconds <= 0 or steps == 0:
            return Fractions(0.0, 0.0)
        experts = self.expert_bytes * min(1.0, self.expert_share * tokens / steps)
        read = steps * (self.dense_bytes + experts) + rows * context * self.cache_bytes
        made = tokens * self.token_operations + rows * self.row_operations
        return Fractions(read / seconds / self.read_bytes, made / seconds / self.int8_operations)


NOTHING = Yardstick()


def make_yardstick(
    model: Model, held: int, cache_bytes: float, read_bytes: float, int8_operations: float
) -> Yardstick:
    """held: bytes of all matrices as the executor has them. cache_bytes: of one token's keys and
    values. The rates are `read_bytes_per_second` and `int8_operations_per_second`."""
    dense, experts, share, rows, per_token = {}, {}, 0.0, 0.0, 0.0
    for op in model.program.ops:
        if isinstance(op, Linear | Logits):
            dense[op.weight] = held_bytes(model, op.weight)
        if isinstance(op, Linear):
            per_token += 2 * op.in_features * op.out_features
        elif isinstance(op, Logits):
            rows += 2 * op.in_features * op.vocab_size
        elif isinstance(op, Moe):
            share = op.chosen / len(op.experts)
            for each in op.experts:
                for part in (each.gate, each.up, each.down):
                    experts[part.weight] = held_bytes(model, part.weight)
                    per_token += 2 * part.in_features * part.out_features * share
    # Headers tell about what each is held in; the executor knows exactly what all are.
    foreseen = sum({**_tables(model), **dense, **experts}.values())
    exact = held / foreseen if foreseen else 0.0
    return Yardstick(
        exact * sum(dense.values()),
        exact * sum(experts.values()),
        share,
        cache_bytes,
        per_token,
        rows,
        read_bytes,
        int8_operations,
    )


def _tables(model: Model) -> dict[str, int]:
    """Bytes of the tables of which a step reads a few rows alone."""
    names = (op.weight for op in model.program.ops if isinstance(op, Embed))
    return {name: held_bytes(model, name) for name in names}


def read_bytes_per_second(
    threads: int,
    size_bytes: int = PROBED_BYTES,
    repeat: int = 5,
    clock: Clock = time.perf_counter,
) -> float:
    """The best rate at which `threads` threads read memory that no cache holds."""
    return _best(Probe(ThreadPool(threads), "auto", size_bytes).read, repeat, clock)


def int8_operations_per_second(
    threads: int,
    rounds: int = PROBED_ROUNDS,
    repeat: int = 5,
    clock: Clock = time.perf_counter,
    instruction_set: str = "auto",
) -> float:
    """The best rate at which `threads` threads multiply bytes that they have in registers, and add
    the products."""
    probe = Probe(ThreadPool(threads), instruction_set, threads)
    return _best(lambda: probe.multiply(rounds), repeat, clock)


def _best(work: Callable[[], int], repeat: int, clock: Clock) -> float:
    best = 0.0
    for _ in range(repeat):
        start = clock()
        done = work()
        best = max(best, done / (clock() - start))
    return best
