"""Mixtures of experts: each token through the few experts that its router chose."""

import torch

from compile.program import Moe
from runtime.executors.cuda.building import Building
from runtime.executors.cuda.forms import Rows
from runtime.executors.cuda.values import Run
from runtime.kernels.triton.experts import route
from runtime.kernels.triton.gated import gated, gated_rounded


def lower_experts(to: Building, op: Moe) -> None:
    """One product for the gates and ups of all experts, and one for the downs.

    Raises UnsupportedModelError for experts that are not stored alike.
    """
    weights = to.weights
    both = weights.stacked([(each.gate.weight, each.up.weight) for each in op.experts])
    down = weights.stacked([(each.down.weight,) for each in op.experts])
    to.widths[op.out] = to.widths[op.x]
    dtype, done = weights.placement.dtype, to.life.done([op])

    def mix(run: Run) -> None:
        x = run.tensor(op.x)
        sent, factors = route(run.tensor(op.logits), op.chosen, op.normalized)
        gate_up = both.multiply(x, dtype, sent=sent)
        inner: Rows
        if down.rounds is None:
            inner = gated(gate_up, op.activation)
        else:
            inner = gated_rounded(gate_up, op.activation, down.rounds)
        found = down.multiply(inner, dtype, sent=sent.behind())
        by_token = found.view(len(x), op.chosen, -1).to(torch.float32)
        run.values[op.out] = (by_token * factors[..., None]).sum(1).to(dtype)
        done(run)

    to.actions.append(mix)
