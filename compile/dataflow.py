"""Who reads what in a Program."""

from collections.abc import Iterable, Iterator, Sequence

from compile.program import Add, Attend, Embed, GatedAct, Linear, Moe, Op, Value


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
        case Moe():
            return (op.x, op.logits)
        case _:
            return (op.x,)


def readers(ops: Iterable[Op]) -> dict[Value, list[Op]]:
    """The ops that read each value, in order."""
    found: dict[Value, list[Op]] = {}
    for op in ops:
        for name in inputs(op):
            found.setdefault(name, []).append(op)
    return found


def together(ops: Sequence[Op]) -> Iterator[list[Op]]:
    """Neighbouring linears of the same input form one run; every other op stands alone."""
    run: list[Op] = []
    for op in ops:
        last = run[-1] if run else None
        joins = isinstance(op, Linear) and isinstance(last, Linear) and last.x == op.x
        if run and not joins:
            yield run
            run = []
        run.append(op)
    if run:
        yield run
