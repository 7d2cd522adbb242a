"""A Program becomes a native Plan: the same ops in order, linears of one input joined."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from compile.dataflow import together
from compile.input_rounding import InputRounding
from compile.program import (
    Add,
    Attend,
    Embed,
    GatedAct,
    Linear,
    Logits,
    Moe,
    Op,
    Program,
    RmsNorm,
    Rope,
    RopeSpec,
    SelectRows,
    Slice,
    Value,
)
from compile.rotation import frequencies
from runtime.executors.cpu.buffers import Buffers, Rows
from runtime.executors.cpu.weights import Packed, Weights
from runtime.kernels.cpu._native import Matrix, Plan
from runtime.kv_cache import KvCacheType

Projection = tuple[int, Packed, npt.NDArray[np.float32] | None]
NativeProjection = tuple[int, Matrix, npt.NDArray[np.float32] | None]
Place = tuple[int, Rows]
"""Width of a buffer, and how many rows it has."""
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Results:
    """Buffers that hold the logits after all ops, and the rows that they are made of, "hidden",
    after the first `hidden_ops` of them."""

    logits: int
    hidden: int
    hidden_ops: int


def lower(
    program: Program, weights: Weights, plan: Plan, cache_number: KvCacheType, rounds: bool
) -> Results:
    """Add every op of `program` to `plan`.

    cache_number: what keys and values are kept in. rounds: what these multiply may be rounded to
    bfloat16 where they are."""
    lowering = _Lowering(program, weights, plan, cache_number, rounds)
    *body, last = together(program.ops)
    for ops in body:
        lowering.add(ops)
        lowering.buffers.release(ops)
    (logits,) = last
    assert isinstance(logits, Logits), "a program ends in logits"
    hidden, hidden_ops = lowering.buffers[logits.x], plan.ops
    lowering.add(last)
    return Results(lowering.buffers[logits.out], hidden, hidden_ops)


def _by(
    projections: Sequence[Projection], key: Callable[[Packed], Key]
) -> dict[Key, list[Projection]]:
    """Projections whose matrices agree in `key`, in the order of the first of each."""
    found: dict[Key, list[Projection]] = {}
    for projection in projections:
        found.setdefault(key(projection[1]), []).append(projection)
    return found


class _Lowering:
    def __init__(
        self,
        program: Program,
        weights: Weights,
        plan: Plan,
        cache_number: KvCacheType,
        rounds: bool,
    ) -> None:
        self.program = program
        self.cache_number = cache_number
        self.rounds = rounds
        self.weights = weights
        self.plan = plan
        self.buffers = Buffers(plan, program)
        self._rope_tables: dict[RopeSpec, int] = {}

    def add(self, ops: Sequence[Op]) -> None:
        op, plan, buffers = ops[0], self.plan, self.buffers
        match op:
            case Embed():
                sizes = self.program.sizes
                table = self.weights.matrix(op.weight, (sizes.vocab_size, sizes.hidden_size))
                out = buffers.create(op.out, sizes.hidden_size)
                plan.add_embed(out, table.matrix, op.scale)
            case RmsNorm():
                weight = self.weights.vector(op.weight, op.size) + np.float32(op.offset)
                plan.add_rms_norm(self._like(op.out, op.x), buffers[op.x], weight.tolist(), op.eps)
            case Slice():
                plan.add_slice(buffers.create(op.out, op.size), buffers[op.x], op.start)
            case Linear():
                self._project(*self._at(op.x), [self._projection(each) for each in ops])
            case Rope():
                table_id, x = self._rope_table(op.rope), buffers[op.x]
                plan.add_rope(self._like(op.out, op.x), x, op.heads, op.head_dim, table_id)
            case Attend():
                self._attend(op)
            case GatedAct():
                out = self._like(op.out, op.gate)
                plan.add_gated_act(out, buffers[op.gate], buffers[op.up], op.activation)
            case Moe():
                self._mix(op)
            case Add():
                plan.add_add(self._like(op.out, op.a), buffers[op.a], buffers[op.b])
            case SelectRows():
                plan.add_select_rows(self._like(op.out, op.x), buffers[op.x])
            case Logits():
                self._logits(op)

    def _like(self, out: Value, x: Value) -> int:
        return self.buffers.create(out, self.buffers.width(x))

    def _at(self, x: Value) -> tuple[int, Place]:
        return self.buffers[x], (self.buffers.width(x), self.buffers.rows(x))

    def _projection(self, op: Op, out: int | None = None) -> Projection:
        """Into the buffer `out`, or that of a new value."""
        assert isinstance(op, Linear)
        packed = self.weights.matrix(op.weight, (op.out_features, op.in_features))
        bias = None if op.bias is None else self.weights.vector(op.bias, op.out_features)
        if out is None:
            out = self.buffers.create(op.out, op.out_features)
        return out, packed, bias

    def _mix(self, op: Moe) -> None:
        """Experts take turns in the same buffers."""
        plan, buffers, first = self.plan, self.buffers, op.experts[0]
        out, x = self._like(op.out, op.x), buffers[op.x]
        plan.add_route(out, buffers[op.logits], op.chosen, op.normalized)
        widths = (first.gate.in_features, *[first.gate.out_features] * 2, first.down.out_features)
        sent, gate, up, down = (buffers.scratch(width, "routed") for width in widths)
        for number, expert in enumerate(op.experts):
            plan.add_send(sent, x, number)
            both = [self._projection(expert.gate, gate), self._projection(expert.up, up)]
            self._project(sent, (widths[0], "routed"), both)
            plan.add_gated_act(gate, gate, up, op.activation)
            self._project(gate, (widths[1], "routed"), [self._projection(expert.down, down)])
            plan.add_collect(out, down)
        for buffer, width in zip((sent, gate, up, down), widths, strict=True):
            buffers.recycle(buffer, width, "routed")

    def _project(self, x: int, place: Place, projections: Sequence[Projection]) -> None:
        """x is rounded once for each way that the matrices ask for."""
        ways = _by(projections, lambda packed: (packed.rounding, packed.matrix.in_quads))
        for (rounding, in_quads), same in ways.items():
            if rounding is None:
                self._multiply(x, place, same)
            elif in_quads:
                self._multiply_int8(x, place, rounding, same)
            else:
                rounded = self.buffers.scratch(*place)
                self._round(rounded, x, rounding)
                self._multiply(rounded, place, same)
                self.buffers.recycle(rounded, *place)

    def _round(self, out: int, x: int, rounding: InputRounding) -> None:
        self.plan.add_round(
            out,
            x,
            rounding.numbers,
            rounding.group,
            rounding.scales,
            rounding.fixed or 0.0,
            rounding.divisor or 1.0,
        )

    def _multiply(self, x: int, place: Place, projections: Sequence[Projection]) -> None:
        """One native op for each order of x's columns that the matrices want."""
        for ordered, same in self._in_order(x, place, projections):
            self.plan.add_linear(ordered, same)

    def _multiply_int8(
        self, x: int, place: Place, rounding: InputRounding, projections: Sequence[Projection]
    ) -> None:
        rounded = self.buffers.rounded(*place)
        for ordered, same in self._in_order(x, place, projections):
            self.plan.add_quantize(
                rounded, ordered, rounding.group, rounding.fixed or 0.0, rounding.span
            )
            self.plan.add_linear_int8(rounded, same)

    def _in_order(
        self, x: int, place: Place, projections: Sequence[Projection]
    ) -> Iterator[tuple[int, list[NativeProjection]]]:
        """(x with its columns in an order, who wants it so) for each order that is wanted."""
        for order, same in _by(projections, lambda packed: packed.order_key).items():
            native = [(out, packed.matrix, bias) for out, packed, bias in same]
            if not order:
                yield x, native
                continue
            gathered = self.buffers.scratch(*place)
            self.plan.add_gather(gathered, x, same[0][1].matrix)
            yield gathered, native
            self.buffers.recycle(gathered, *place)

    def _attend(self, op: Attend) -> None:
        q, k, v = (self.buffers[name] for name in (op.q, op.k, op.v))
        self.plan.add_attend(
            self._like(op.out, op.q),
            q,
            k,
            v,
            cache=self.plan.add_cache(op.kv_heads, op.head_dim, self.cache_number),
            heads=op.heads,
            kv_heads=op.kv_heads,
            head_dim=op.head_dim,
            scale=op.scale,
            window=op.window or 0,
            softcap=op.softcap or 0.0,
            rounded=self.rounds,
        )

    def _logits(self, op: Logits) -> None:
        packed = self.weights.matrix(op.weight, (op.vocab_size, op.in_features))
        out = self.buffers.create(op.out, op.vocab_size)
        self._project(*self._at(op.x), [(out, packed, None)])
        if op.softcap is not None:
            self.plan.add_softcap(out, op.softcap)
        self.plan.add_argmax(out)

    def _rope_table(self, spec: RopeSpec) -> int:
        if spec not in self._rope_tables:
            table = self.plan.add_rope_table(frequencies(spec).tolist(), spec.attention_factor)
            self._rope_tables[spec] = table
        return self._rope_tables[spec]
