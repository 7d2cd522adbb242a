"""Attention, and what happens to queries and keys before it."""

import torch

from compile.program import Attend, RmsNorm, RopeSpec
from compile.rotation import cos_and_sin
from runtime.executors.cuda.building import Building
from runtime.executors.cuda.values import Heads, Run
from runtime.kernels.triton.attention import attend
from runtime.kernels.triton.cache import HeadNorm, RopeTable, rotate_and_store


def lower_attend(to: Building, op: Attend) -> None:
    """Norms, rotation and the write to the cache are one kernel; attention is another."""
    q, k = (to.life.heads.get(name, Heads(name)) for name in (op.q, op.k))
    cache, v = to.caches[op.layer], op.v
    rope = None if q.rope is None else _rope_table(to, q.rope)
    assert q.rope == k.rope, "queries and keys are rotated alike"
    norm = _head_norm(to, q.norm, k.norm)
    to.widths[op.out] = op.heads * op.head_dim
    done = to.life.done([op])

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

    to.actions.append(attention)


def _head_norm(to: Building, query: RmsNorm | None, key: RmsNorm | None) -> HeadNorm | None:
    if query is None or key is None:
        assert query is key, "queries and keys are normed alike"
        return None
    assert query.eps == key.eps, "queries and keys are normed alike"
    by_query = to.weights.vector(query.weight, query.offset)
    return HeadNorm(by_query, to.weights.vector(key.weight, key.offset), query.eps)


def _rope_table(to: Building, spec: RopeSpec) -> RopeTable:
    if spec not in to.ropes:
        count = to.program.sizes.max_positions
        tables = (torch.from_numpy(table) for table in cos_and_sin(spec, count))
        to.ropes[spec] = RopeTable(*(table.to(to.weights.placement.device) for table in tables))
    return to.ropes[spec]
