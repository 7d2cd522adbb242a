"""Products with weights."""

from collections.abc import Sequence

import torch
from torch import Tensor

from compile.program import Linear, Logits
from runtime.executors.cuda.building import Building
from runtime.executors.cuda.values import Part, Run
from runtime.kernels.triton.norm import round_rows


def lower_linears(to: Building, ops: Sequence[Linear]) -> None:
    """One product for each run of linears whose weights are stored alike."""
    runs: list[list[Linear]] = []
    for op in ops:
        if runs and to.weights.joins(runs[-1][0].weight, op.weight):
            runs[-1].append(op)
        else:
            runs.append([op])
    for run in runs:
        _product(to, run)


def _product(to: Building, ops: Sequence[Linear]) -> None:
    form = to.weights.form([op.weight for op in ops])
    bias = to.weights.bias([op.bias for op in ops], [op.out_features for op in ops])
    out, start = ops[0].out, 0
    if len(ops) > 1:
        out = "+".join(op.out for op in ops)
        for op in ops:
            to.life.part(op.out, Part(out, start, op.out_features))
            start += op.out_features
    for op in ops:
        to.widths[op.out] = op.out_features
    to.widths[out] = sum(op.out_features for op in ops)
    dtype, x, done = to.weights.placement.dtype, ops[0].x, to.life.done(ops)
    max_ranks = to.ranks.max if to.ranks is not None and to.is_shared(ops[0]) else None

    def project(run: Run) -> None:
        rows = run.values[x]
        if max_ranks is not None and form.rounds is not None and isinstance(rows, Tensor):
            largest = max_ranks(rows.abs().amax(1).to(torch.float32))
            rows = round_rows(rows, form.rounds, largest)
        product = form.multiply(rows, dtype, bias)
        run.values[out] = product
        first = 0
        for op in ops if len(ops) > 1 else ():
            run.values[op.out] = product[:, first : first + op.out_features]
            first += op.out_features
        done(run)

    to.actions.append(project)


def lower_logits(to: Building, op: Logits) -> None:
    """float32, the softcap included."""
    form, softcap = to.weights.form([op.weight]), op.softcap
    dtype = to.weights.placement.dtype

    def logits(run: Run) -> None:
        found = form.multiply(run.values[op.x], dtype).to(torch.float32)
        if softcap is not None:
            found = softcap * torch.tanh(found / softcap)
        run.values[op.out] = found

    to.actions.append(logits)
