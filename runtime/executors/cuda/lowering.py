"""A Program becomes a list of actions: kernels, with what lies between them fused.

Linears of one input are one product; a residual sum joins the norm that reads it; per-head norms,
rotary embedding and the write to the cache are one kernel; norms and gates round their result where
the linear behind them wants it rounded.
"""

from collections.abc import Sequence

import torch

from compile.dataflow import readers, together
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
    SumRanks,
    Value,
)
from quant.format.errors import UnsupportedModelError
from runtime.executors.cuda.rope import rope_table
from runtime.executors.cuda.values import HIDDEN, Action, Heads, Lifetimes, Part, Run, SumOverRanks
from runtime.executors.cuda.weights import DeviceWeights
from runtime.kernels.triton.attention import attend
from runtime.kernels.triton.cache import HeadNorm, LayerCache, RopeTable, rotate_and_store
from runtime.kernels.triton.gated import gated, gated_rounded
from runtime.kernels.triton.norm import rms_norm, rms_norm_rounded
from runtime.kernels.triton.rounded import Numbers


def lower(
    program: Program,
    weights: DeviceWeights,
    caches: Sequence[LayerCache],
    sum_ranks: SumOverRanks | None = None,
) -> list[Action]:
    """The actions of a step, in order; the last leaves float32 logits under the last op's name.

    sum_ranks: the sum of a tensor over the processes that share the model, for one rank's Program.

    Raises UnsupportedModelError for an op or a weight that no kernel here runs.
    """
    lowering = _Lowering(program, weights, caches, sum_ranks)
    for ops in together(program.ops):
        lowering.add(ops)
    return lowering.actions


class _Lowering:
    def __init__(
        self,
        program: Program,
        weights: DeviceWeights,
        caches: Sequence[LayerCache],
        sum_ranks: SumOverRanks | None,
    ) -> None:
        self._sum_ranks = sum_ranks
        self.program = program
        self.weights = weights
        self.caches = caches
        self.actions: list[Action] = []
        self._readers = readers(program.ops)
        self._life = Lifetimes(self._readers)
        self._widths: dict[Value, int] = {}
        self._sums: dict[Value, Add] = {}
        self._ropes: dict[RopeSpec, RopeTable] = {}

    def add(self, ops: Sequence[Op]) -> None:
        op = ops[0]
        match op:
            case Embed():
                self._embed(op)
            case RmsNorm():
                self._norm(op)
            case Linear():
                self._project([each for each in ops if isinstance(each, Linear)])
            case Slice():
                self._slice(op)
            case Rope():
                heads = self._life.heads.get(op.x, Heads(op.x))
                self._life.heads[op.out] = Heads(heads.source, heads.norm, op.rope)
            case Attend():
                self._attend(op)
            case GatedAct():
                self._gate(op)
            case Add():
                self._add(op)
            case SumRanks():
                self._sum(op)
            case SelectRows():
                self._select(op)
            case Logits():
                self._logits(op)
            case Moe():
                raise UnsupportedModelError(
                    f"{self.program.family} models mix experts, which the cuda backend does not "
                    "run; use --backend torch"
                )

    def _embed(self, op: Embed) -> None:
        table, scale = self.weights.table(op.weight), op.scale
        self._widths[op.out] = table.shape[1]

        def embed(run: Run) -> None:
            rows = torch.nn.functional.embedding(run.arrays.token_ids, table)
            run.values[op.out] = rows if scale == 1.0 else rows * scale

        self.actions.append(embed)

    def _norm(self, op: RmsNorm) -> None:
        width = self._widths[op.x]
        self._widths[op.out] = width
        if op.size != width:
            self._life.heads[op.out] = Heads(op.x, op)
            return
        weight, eps = self.weights.vector(op.weight, op.offset), op.eps
        total = self._sums.pop(op.x, None)
        delta = op.x if total is None else total.b
        numbers = self._wanted_numbers(op.out)
        done = self._life.done([op] if total is None else [op, total])

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

        self.actions.append(norm)

    def _project(self, ops: Sequence[Linear]) -> None:
        """One product for each run of linears whose weights are stored alike."""
        runs: list[list[Linear]] = []
        for op in ops:
            if runs and self.weights.joins(runs[-1][0].weight, op.weight):
                runs[-1].append(op)
            else:
                runs.append([op])
        for run in runs:
            self._product(run)

    def _product(self, ops: Sequence[Linear]) -> None:
        form = self.weights.form([op.weight for op in ops])
        bias = self.weights.bias([op.bias for op in ops], [op.out_features for op in ops])
        out, start = ops[0].out, 0
        if len(ops) > 1:
            out = "+".join(op.out for op in ops)
            for op in ops:
                self._life.part(op.out, Part(out, start, op.out_features))
                start += op.out_features
        for op in ops:
            self._widths[op.out] = op.out_features
        self._widths[out] = sum(op.out_features for op in ops)
        dtype, x, done = self.weights.placement.dtype, ops[0].x, self._life.done(ops)

        def project(run: Run) -> None:
            product = form.multiply(run.values[x], dtype, bias)
            run.values[out] = product
            first = 0
            for op in ops if len(ops) > 1 else ():
                run.values[op.out] = product[:, first : first + op.out_features]
                first += op.out_features
            done(run)

        self.actions.append(project)

    def _slice(self, op: Slice) -> None:
        self._widths[op.out] = op.size
        self._life.part(op.out, Part(op.x, op.start, op.size))

        def cut(run: Run) -> None:
            run.values[op.out] = run.tensor(op.x)[:, op.start : op.start + op.size]

        self.actions.append(cut)

    def _attend(self, op: Attend) -> None:
        q, k = (self._life.heads.get(name, Heads(name)) for name in (op.q, op.k))
        cache, v = self.caches[op.layer], op.v
        rope = None if q.rope is None else self._rope_table(q.rope)
        assert q.rope == k.rope, "queries and keys are rotated alike"
        norm = self._head_norm(q.norm, k.norm)
        self._widths[op.out] = op.heads * op.head_dim
        done = self._life.done([op])

        def attention(run: Run) -> None:
            arrays = run.arrays
            queries = rotate_and_store(
                run.tensor(q.source),
                run.tensor(k.source),
                run.tensor(v),
                arrays.positions,
                arrays.slots,
                cache,
                rope,
                norm,
            )
            out = attend(queries, cache, arrays.work, op.scale, op.window, op.softcap)
            run.values[op.out] = out.flatten(1)
            done(run)

        self.actions.append(attention)

    def _head_norm(self, query: RmsNorm | None, key: RmsNorm | None) -> HeadNorm | None:
        if query is None or key is None:
            assert query is key, "queries and keys are normed alike"
            return None
        assert query.eps == key.eps, "queries and keys are normed alike"
        by_query = self.weights.vector(query.weight, query.offset)
        return HeadNorm(by_query, self.weights.vector(key.weight, key.offset), query.eps)

    def _gate(self, op: GatedAct) -> None:
        gate, up = self._life.parts.get(op.gate), self._life.parts.get(op.up)
        fused = (
            gate is not None
            and up is not None
            and gate.parent == up.parent
            and (gate.start, up.start) == (0, gate.size)
            and self._widths[gate.parent] == gate.size + up.size
        )
        parent = gate.parent if fused and gate is not None else None
        numbers = self._wanted_numbers(op.out)
        self._widths[op.out] = self._widths[op.gate]
        done = self._life.done([op])

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

        self.actions.append(act)

    def _add(self, op: Add) -> None:
        self._widths[op.out] = self._widths[op.a]
        first = self._readers[op.out][0]
        # The sum is written over op.a, which nothing may read any more.
        alone = self._readers[op.a][-1] is op and op.a not in self._life.parts
        if isinstance(first, RmsNorm) and first.size == self._widths[op.a] and alone:
            self._sums[op.out] = op
            return
        done = self._life.done([op])

        def add(run: Run) -> None:
            run.values[op.out] = run.tensor(op.a) + run.tensor(op.b)
            done(run)

        self.actions.append(add)

    def _sum(self, op: SumRanks) -> None:
        sum_ranks = self._sum_ranks
        assert sum_ranks is not None, "a rank's program needs to know the others"
        self._widths[op.out] = self._widths[op.x]
        done = self._life.done([op])

        def total(run: Run) -> None:
            run.values[op.out] = sum_ranks(run.tensor(op.x))
            done(run)

        self.actions.append(total)

    def _select(self, op: SelectRows) -> None:
        self._widths[op.out] = self._widths[op.x]
        done = self._life.done([op])

        def select(run: Run) -> None:
            run.values[op.out] = run.tensor(op.x).index_select(0, run.arrays.logit_rows)
            run.values[HIDDEN] = run.values[op.out]
            done(run)

        self.actions.append(select)

    def _logits(self, op: Logits) -> None:
        form, softcap = self.weights.form([op.weight]), op.softcap
        dtype = self.weights.placement.dtype

        def logits(run: Run) -> None:
            found = form.multiply(run.values[op.x], dtype).to(torch.float32)
            if softcap is not None:
                found = softcap * torch.tanh(found / softcap)
            run.values[op.out] = found

        self.actions.append(logits)

    def _wanted_numbers(self, name: Value) -> Numbers | None:
        """What all readers of a value want it rounded to; None where one wants it as it is."""
        ops = self._readers.get(name, [])
        wanted = {self.weights.rounds(op.weight) if isinstance(op, Linear) else None for op in ops}
        return wanted.pop() if len(wanted) == 1 else None

    def _rope_table(self, spec: RopeSpec) -> RopeTable:
        if spec not in self._ropes:
            count = self.program.sizes.max_positions
            self._ropes[spec] = rope_table(spec, count, self.weights.placement.device)
        return self._ropes[spec]
