"""The oracle: a Program, op by op, in plain PyTorch arithmetic on any device.

Every other executor is tested against this one, so it prefers the obvious over the fast.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from compile.input_rounding import InputRounding, check_input, input_rounding
from compile.model import Model
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
)
from quant.format.tensor import QuantizedTensor, Weight, WeightSource
from runtime.engine.batch import StepBatch
from runtime.executors.torch.rounding import round_cached, round_input
from runtime.kv_cache import KvCacheType

Dtype = Literal["float32", "float64", "float16", "bfloat16"]
TILE = 8
"""Rows of every matrix product. A fixed shape makes a row's sum independent of its company."""


class TorchExecutor:
    """Implements `runtime.engine.batch.Executor`; weights are dequantized once, at construction.

    dtype: of weights, activations and the KV pool; float32 is the oracle. cache: what keys and
    values are rounded to before the pool takes them. sum_ranks, max_ranks: the sum of a tensor, and
    the largest of each number, over the processes that share the model, for a Program that is one
    rank's.
    """

    def __init__(
        self,
        model: Model,
        *,
        num_pages: int,
        page_size: int = 32,
        device: str = "cpu",
        dtype: Dtype = "float32",
        cache: KvCacheType = "float32",
        sum_ranks: Callable[[Tensor], Tensor] | None = None,
        max_ranks: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self._cache = cache
        self._program: Program = model.program
        self._sum_ranks = sum_ranks
        self._max_ranks = max_ranks
        self._summed = {op.x for op in model.program.ops if isinstance(op, SumRanks)}
        self._device = torch.device(device)
        self._dtype: torch.dtype = getattr(torch, dtype)
        for op in model.program.projections():
            check_input(op.weight, op.scheme)
        self._roundings: dict[str, InputRounding] = {}
        self._weights = self._load(model.weights)
        sizes = model.program.sizes
        # [layers, keys or values, page, offset, kv_heads, head_dim]
        self._pool = torch.zeros(
            (sizes.layers, 2, num_pages, page_size, sizes.kv_heads, sizes.head_dim),
            dtype=self._dtype,
            device=self._device,
        )

    @property
    def vocab_size(self) -> int:
        return self._program.sizes.vocab_size

    @property
    def max_positions(self) -> int:
        return self._program.sizes.max_positions

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights as they are held, dequantized."""
        return sum(tensor.nbytes for tensor in self._weights.values())

    @property
    def page_size(self) -> int:
        return int(self._pool.shape[3])

    @property
    def num_pages(self) -> int:
        return int(self._pool.shape[2])

    def step(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        """Logits, float32 [R, vocab_size]."""
        return self._run_all(self._program.ops, batch)

    def hidden(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        """What logits are made of, float32 [R, hidden_size]."""
        return self._run_all(self._program.ops[:-1], batch)

    def _run_all(self, ops: Sequence[Op], batch: StepBatch) -> npt.NDArray[np.float32]:
        with torch.inference_mode():
            values: dict[str, Tensor] = {}
            for op in ops:
                values[op.out] = self._run(op, values, batch)
            return np.asarray(values[ops[-1].out].to(torch.float32).cpu().numpy())

    def close(self) -> None:
        self._weights = {}
        self._pool = self._pool[:, :, :0]

    def _load(self, source: WeightSource) -> dict[str, Tensor]:
        tensors = {}
        for name in self._program.weights():
            weight = source.load(name)
            rounding = input_rounding(name, weight)
            if rounding is not None:
                self._roundings[name] = rounding
            tensors[name] = torch.from_numpy(as_float32(weight)).to(self._device, self._dtype)
        return tensors

    def _run(self, op: Op, values: Mapping[str, Tensor], batch: StepBatch) -> Tensor:
        weights = self._weights
        match op:
            case Embed():
                return weights[op.weight][self._index(batch.token_ids)] * op.scale
            case RmsNorm():
                return rms_norm(values[op.x], weights[op.weight] + op.offset, op.size, op.eps)
            case Slice():
                return values[op.x][:, op.start : op.start + op.size]
            case Linear():
                max_ranks = self._max_ranks if op.out in self._summed else None
                out = self._project(values[op.x], op.weight, max_ranks)
                return out if op.bias is None else out + weights[op.bias]
            case Rope():
                return rotate(values[op.x], self._index(batch.positions), op)
            case Attend():
                return self._attend(op, values[op.q], values[op.k], values[op.v], batch)
            case GatedAct():
                return activate(values[op.gate], op.activation) * values[op.up]
            case Moe():
                return self._mix(op, values[op.x], values[op.logits])
            case Add():
                return values[op.a] + values[op.b]
            case SumRanks():
                assert self._sum_ranks is not None, "a rank's program needs to know the others"
                return self._sum_ranks(values[op.x])
            case SelectRows():
                return values[op.x][self._index(batch.logit_rows)]
            case Logits():
                logits = self._project(values[op.x], op.weight)
                return logits if op.softcap is None else cap(logits, op.softcap)

    def _mix(self, op: Moe, x: Tensor, logits: Tensor) -> Tensor:
        wide = torch.promote_types(logits.dtype, torch.float32)
        factors, numbers = logits.softmax(-1, dtype=wide).topk(op.chosen)
        if op.normalized:
            factors = factors / factors.sum(-1, keepdim=True)
        out = torch.zeros_like(x)
        for number, expert in enumerate(op.experts):
            rows, places = torch.where(numbers == number)
            if len(rows):
                gate = self._project(x[rows], expert.gate.weight)
                up = self._project(x[rows], expert.up.weight)
                gated = activate(gate, op.activation) * up
                factor = factors[rows, places, None].to(x.dtype)
                out[rows] += self._project(gated, expert.down.weight) * factor
        return out

    def _project(
        self, x: Tensor, weight: str, max_ranks: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """x @ weight.T, with x rounded as the weight's scheme says."""
        rounding = self._roundings.get(weight)
        if rounding is not None:
            x = round_input(x, rounding, max_ranks)
        return matmul_by_tiles(x, self._weights[weight])

    def _attend(self, op: Attend, q: Tensor, k: Tensor, v: Tensor, batch: StepBatch) -> Tensor:
        out = torch.empty_like(q)
        keys_pool, values_pool = self._pool[op.layer]
        for sequence, pages in enumerate(batch.page_table):
            start, end = batch.query_starts[sequence : sequence + 2]
            if start == end:
                continue
            positions = batch.positions[start:end]
            slots = self._index(slots_of(pages, int(positions.max()) + 1, self.page_size))
            written = slots[self._index(positions)]
            head_shape = (-1, op.kv_heads, op.head_dim)
            for pool, rows in ((keys_pool, k), (values_pool, v)):
                rounded = round_cached(rows[start:end].view(head_shape), self._cache)
                pool.view(head_shape)[written] = rounded
            keys, values = keys_pool.view(head_shape)[slots], values_pool.view(head_shape)[slots]
            for row, position in zip(range(start, end), positions.tolist(), strict=True):
                first = 0 if op.window is None else max(0, position + 1 - op.window)
                seen = slice(first, position + 1)
                out[row] = attend_one(q[row], keys[seen], values[seen], op)
        return out

    def _index(self, numbers: npt.NDArray[np.int32]) -> Tensor:
        return torch.from_numpy(numbers.astype(np.int64)).to(self._device)


def as_float32(weight: Weight) -> npt.NDArray[np.float32]:
    if isinstance(weight, QuantizedTensor):
        return weight.dequantize()
    return np.array(weight, dtype=np.float32)


def slots_of(pages: npt.NDArray[np.int32], length: int, page_size: int) -> npt.NDArray[np.int32]:
    """int32 [length]: the place of positions 0 .. length - 1 in a pool seen as one row of slots."""
    positions = np.arange(length, dtype=np.int32)
    owners = pages[positions // page_size]
    assert (owners > 0).all(), "a position of the step lies in the reserved page 0"
    return owners * page_size + positions % page_size


def matmul_by_tiles(x: Tensor, weight: Tensor) -> Tensor:
    """x[rows, in] @ weight[out, in].T, TILE rows at a time, the last tile filled with zeros."""
    rows = len(x)
    padded = torch.nn.functional.pad(x, (0, 0, 0, -rows % TILE))
    tiles = [tile @ weight.T for tile in torch.split(padded, TILE)] if rows else [x @ weight.T]
    return torch.cat(tiles)[:rows]


def rms_norm(x: Tensor, weight: Tensor, size: int, eps: float) -> Tensor:
    runs = x.view(len(x), -1, size)
    mean_square = runs.square().mean(-1, keepdim=True)
    return (runs * torch.rsqrt(mean_square + eps) * weight).view_as(x)


def rotate(x: Tensor, positions: Tensor, op: Rope) -> Tensor:
    """Rotate-half: element i of a head pairs with element i + dimension / 2."""
    spec, half = op.rope, op.rope.dimension // 2
    angles = positions.to(torch.float64)[:, None] * frequencies(spec).to(x.device)
    cos = (angles.cos() * spec.attention_factor).to(x.dtype)[:, None]
    sin = (angles.sin() * spec.attention_factor).to(x.dtype)[:, None]
    heads = x.view(len(x), op.heads, op.head_dim)
    a, b, rest = heads[..., :half], heads[..., half : 2 * half], heads[..., 2 * half :]
    return torch.cat((a * cos - b * sin, b * cos + a * sin, rest), dim=-1).view_as(x)


def frequencies(spec: RopeSpec) -> Tensor:
    """float64 [dimension / 2], radians per position."""
    pairs = torch.arange(spec.dimension // 2, dtype=torch.float64)
    base = spec.theta ** (-2.0 * pairs / spec.dimension)
    if spec.factors is None:
        return base
    return base / torch.tensor(spec.factors, dtype=torch.float64)


def attend_one(q: Tensor, keys: Tensor, values: Tensor, op: Attend) -> Tensor:
    """One token's q [heads * head_dim] over keys and values [seen, kv_heads, head_dim]."""
    groups = q.view(op.kv_heads, op.heads // op.kv_heads, op.head_dim)
    scores = torch.einsum("kgd,skd->kgs", groups, keys) * op.scale
    if op.softcap is not None:
        scores = cap(scores, op.softcap)
    return torch.einsum("kgs,skd->kgd", scores.softmax(-1), values).reshape(-1)


def activate(gate: Tensor, activation: Literal["silu", "gelu_tanh"]) -> Tensor:
    if activation == "silu":
        return torch.nn.functional.silu(gate)
    return torch.nn.functional.gelu(gate, approximate="tanh")


def cap(x: Tensor, softcap: float) -> Tensor:
    return softcap * torch.tanh(x / softcap)
