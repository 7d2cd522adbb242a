"""A Program becomes a list of actions: kernels, with what lies between them fused.

Linears of one input are one product; a residual sum joins the norm that reads it; per-head norms,
rotary embedding and the write to the cache are one kernel; norms and gates round their result where
the linear behind them wants it rounded.
"""

from collections.abc import Sequence

import torch

from compile.dataflow import together
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
    SelectRows,
    Slice,
    SumRanks,
)
from runtime.executors.cuda.attention import lower_attend
from runtime.executors.cuda.building import Building, OtherRanks
from runtime.executors.cuda.experts import lower_experts
from runtime.executors.cuda.linears import lower_linears, lower_logits
from runtime.executors.cuda.values import HIDDEN, Action, Heads, Part, Run
from runtime.executors.cuda.weights import DeviceWeights
from runtime.kernels.triton.cache import LayerCache
from runtime.kernels.triton.gated import gated, gated_rounded
from runtime.kernels.triton.norm import rms_norm, rms_norm_rounded


def lower(
    program: Program,
    weights: DeviceWeights,
    caches: Sequence[LayerCache],
    ranks: OtherRanks | None = None,
) -> list[Action]:
    """The actions of a step, in order; the last leaves float32 logits under the last op's name.

    ranks: for one rank's Program.

    Raises UnsupportedModelError for an op or a weight that no kernel here runs.
    """
    building = Building(program, weights, caches, ranks)
    for ops in together(program.ops):
        _add_to(building, ops)
    return building.actions


def _add_to(to: Building, ops: Sequence[Op]) -> None:
    op = ops[0]
    match op:
        case Embed():
            _embed(to, op)
        case RmsNorm():
            _norm(to, op)
        case Linear():
            lower_linears(to, [each for each in ops if isinstance(each, Linear)])
        case Slice():
            _slice(to, op)
        case Rope():
            heads = to.life.heads.get(op.x, Heads(op.x))
            to.life.heads[op.out] = Heads(heads.source, heads.norm, op.rope)
        case Attend():
            lower_attend(to, op)
        case GatedAct():
            _gate(to, op)
        case Add():
            _add(to, op)
        case SumRanks():
            _sum(to, op)
        case SelectRows():
            _select(to, op)
        case Logits():
            lower_logits(to, op)
        case Moe():
            lower_experts(to, op)


def _embed(to: Building, op: Embed) -> None:
    table, scale = to.weights.table(op.weight), op.scale
    to.widths[op.out] = table.shape[1]

    def embed(run: Run) -> None:
        rows = torch.nn.functional.embedding(run.arrays.token_ids, table)
        run.values[op.out] = rows if scale == 1.0 else rows * scale

    to.actions.append(embed)


def _norm(to: Building, op: RmsNorm) -> None:
    width = to.widths[op.x]
    to.widths[op.out] = width
    if op.size != width:
        to.life.heads[op.out] = Heads(op.x, op)
        return
    weight, eps = to.weights.vector(op.weight, op.offset), op.eps
    total = to.sums.pop(op.x, None)
    delta = op.x if total is None else total.b
    numbers = to.wanted_numbers(op.out)
    done = to.life.done([op] if total is None else [op, total])

    def norm(run: Run) -> None:
        residual = None if total is None else run.tensor(total.a)
        x = run.tensor(delta)
        if numbers is None:
            run.values[op.out] = rms_norm(x, weight, eps, residual)
        else:
            run.values[op.out] = rms_norm_rounded(x, weight, eps, numbers, residual)
        if total is not None and residual is not None:
            run.values[total.out] = residual
        done(run)

    to.actions.append(norm)


def _slice(to: Building, op: Slice) -> None:
    to.widths[op.out] = op.size
    to.life.part(op.out, Part(op.x, op.start, op.size))

    def cut(run: Run) -> None:
        run.values[op.out] = run.tensor(op.x)[:, op.start : op.start + op.size]

    to.actions.append(cut)


def _gate(to: Building, op: GatedAct) -> None:
    gate, up = to.life.parts.get(op.gate), to.life.parts.get(op.up)
    fused = (
        gate is not None
        and up is not None
        and gate.parent == up.parent
        and (gate.start, up.start) == (0, gate.size)
        and to.widths[gate.parent] == gate.size + up.size
    )
    parent = gate.parent if fused and gate is not None else None
    numbers = to.wanted_numbers(op.out)
    to.widths[op.out] = to.widths[op.gate]
    done = to.life.done([op])

    def act(run: Run) -> None:
        if parent is not None:
            both = run.tensor(parent)
        else:
            both = torch.cat((run.tensor(op.gate), run.tensor(op.up)), dim=1)
        if numbers is None:
            run.values[op.out] = gated(both, op.activation)
        else:
            run.values[op.out] = gated_rounded(both, op.activation, numbers)
        done(run)

    to.actions.append(act)


def _add(to: Building, op: Add) -> None:
    to.widths[op.out] = to.widths[op.a]
    first = to.readers[op.out][0]
    # The sum is written over op.a, which nothing may read any more.
    alone = to.readers[op.a][-1] is op and op.a not in to.life.parts
    if isinstance(first, RmsNorm) and first.size == to.widths[op.a] and alone:
        to.sums[op.out] = op
        return
    done = to.life.done([op])

    def add(run: Run) -> None:
        run.values[op.out] = run.tensor(op.a) + run.tensor(op.b)
        done(run)

    to.actions.append(add)


def _sum(to: Building, op: SumRanks) -> None:
    assert to.ranks is not None, "a rank's program needs to know the others"
    sum_ranks = to.ranks.sum
    to.widths[op.out] = to.widths[op.x]
    done = to.life.done([op])

    def total(run: Run) -> None:
        run.values[op.out] = sum_ranks(run.tensor(op.x))
        done(run)

    to.actions.append(total)


def _select(to: Building, op: SelectRows) -> None:
    to.widths[op.out] = to.widths[op.x]
    done = to.life.done([op])

    def select(run: Run) -> None:
        run.values[op.out] = run.tensor(op.x).index_select(0, run.arrays.logit_rows)
        run.values[HIDDEN] = run.values[op.out]
        done(run)

    to.actions.append(select)
