"""Queries and keys are normed and rotated; keys and values go to their slots in the page pool."""

from dataclasses import dataclass
from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels.triton.numbers import SMALLEST_SCALE, round_to_e4m3, round_to_int8

CacheNumber = Literal["float32", "float16", "bfloat16", "int8", "e4m3"]


@dataclass(frozen=True, eq=False)
class LayerCache:
    """The pages of one layer.

    keys, values: [num_pages, kv_heads, page_size, head_dim]: the tokens that one head of a page
    holds lie together. key_scale, value_scale: float32 [1], stored with the model; or, for int8
    only, float32 [num_pages, kv_heads, page_size], made for each token and head as it is written;
    None for floats.
    """

    keys: Tensor
    values: Tensor
    key_scale: Tensor | None = None
    value_scale: Tensor | None = None

    @property
    def page_size(self) -> int:
        return int(self.keys.shape[2])

    @property
    def kind(self) -> int:
        """0: floats as they are; 1: int8; 2: e4m3; 3: int8 with one stored scale."""
        if self.keys.dtype == torch.int8:
            return 3 if self.key_scale is not None and self.key_scale.numel() == 1 else 1
        return 2 if self.keys.dtype == torch.float8_e4m3fn else 0

    @property
    def nbytes(self) -> int:
        parts = (self.keys, self.values, self.key_scale, self.value_scale)
        return sum(part.nbytes for part in parts if part is not None)


def make_cache(
    number: CacheNumber,
    shape: tuple[int, int, int, int],
    device: torch.device,
    scales: tuple[float, float] | None = None,
) -> LayerCache:
    """Zeroed pages of `shape` [num_pages, kv_heads, page_size, head_dim]. scales: what rounded keys
    and values are divided by; without them e4m3 takes 1, and int8 makes its own."""
    dtype = torch.float8_e4m3fn if number == "e4m3" else getattr(torch, number)
    keys, values = (torch.zeros(shape, dtype=dtype, device=device) for _ in range(2))
    if number not in ("int8", "e4m3"):
        return LayerCache(keys, values)
    if number == "int8" and scales is None:
        key_scale, value_scale = (torch.zeros(shape[:3], device=device) for _ in range(2))
    else:
        stored = scales or (1.0, 1.0)
        key_scale, value_scale = (torch.tensor([scale], device=device) for scale in stored)
    return LayerCache(keys, values, key_scale, value_scale)


@dataclass(frozen=True, eq=False)
class RopeTable:
    """cos, sin: float32 [positions, dimension / 2], the attention factor included. Pairs are
    rotate-half (NEOX)."""

    cos: Tensor
    sin: Tensor


@dataclass(frozen=True, eq=False)
class HeadNorm:
    """Per-head norms of queries and keys: float32 [head_dim], offset included."""

    query: Tensor
    key: Tensor
    eps: float


def rotate_and_store(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    positions: Tensor,
    slots: Tensor,
    cache: LayerCache,
    rope: RopeTable | None,
    norm: HeadNorm | None = None,
) -> Tensor:
    """Rotated queries, contiguous [tokens, heads, head_dim]; k and v are in the cache afterwards.

    q: [tokens, heads * head_dim], k and v: [tokens, kv_heads * head_dim], rows of any stride.
    positions: int32 [tokens]. slots: int32 [tokens], page * page_size + offset.
    """
    _, kv_heads, page_size, head_dim = cache.keys.shape
    tokens, heads = len(q), q.shape[1] // head_dim
    out = torch.empty((tokens, heads, head_dim), dtype=q.dtype, device=q.device)
    if tokens == 0:
        return out
    scales = cache.keys if cache.key_scale is None else cache.key_scale
    _rotate_and_store_kernel[(tokens, 3)](
        q,
        k,
        v,
        out,
        positions,
        slots,
        cache.keys,
        cache.values,
        scales,
        scales if cache.value_scale is None else cache.value_scale,
        q if rope is None else rope.cos,
        q if rope is None else rope.sin,
        q if norm is None else norm.query,
        q if norm is None else norm.key,
        0.0 if norm is None else norm.eps,
        q.stride(0),
        k.stride(0),
        v.stride(0),
        HEADS=heads,
        KV_HEADS=kv_heads,
        PAGE=page_size,
        SIZE=head_dim,
        HALF=0 if rope is None else rope.cos.shape[1],
        NORM=norm is not None,
        KIND=cache.kind,
        SMALLEST=SMALLEST_SCALE,
        ROWS=triton.next_power_of_2(heads),
        KV_ROWS=triton.next_power_of_2(kv_heads),
        BLOCK=triton.next_power_of_2(head_dim),
        num_warps=4,
    )
    return out


@triton.jit
def _rotate_and_store_kernel(
    q, k, v, out, positions, slots, keys, values, key_scale, value_scale, cos, sin,
    query_norm, key_norm, eps, q_stride, k_stride, v_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, PAGE: tl.constexpr, SIZE: tl.constexpr,
    HALF: tl.constexpr, NORM: tl.constexpr, KIND: tl.constexpr, SMALLEST: tl.constexpr,
    ROWS: tl.constexpr, KV_ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    # Branches of a kernel may not give one name to blocks of two shapes: each is a function.
    token = tl.program_id(0).to(tl.int64)
    part = tl.program_id(1)
    if part == 0:
        _rotate_queries(
            q + token * q_stride, out + token * HEADS * SIZE, query_norm, positions + token,
            cos, sin, eps, HEADS, SIZE, HALF, NORM, ROWS, BLOCK,
        )  # fmt: skip
    elif part == 1:
        _store_keys(
            k + token * k_stride, keys, key_scale, slots + token, key_norm, positions + token,
            cos, sin, eps, KV_HEADS, PAGE, SIZE, HALF, NORM, KIND, SMALLEST, KV_ROWS, BLOCK,
        )  # fmt: skip
    else:
        _store_keys(
            v + token * v_stride, values, value_scale, slots + token, key_norm, positions + token,
            cos, sin, eps, KV_HEADS, PAGE, SIZE, 0, False, KIND, SMALLEST, KV_ROWS, BLOCK,
        )  # fmt: skip


@triton.jit
def _rotate_queries(
    source, target, norm, position, cos, sin, eps,
    HEADS: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr, NORM: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    columns = tl.arange(0, BLOCK)[None, :]
    heads = tl.arange(0, ROWS)[:, None]
    inside = (heads < HEADS) & (columns < SIZE)
    x = _normed_and_rotated(
        source + heads * SIZE, norm, position, cos, sin, columns, inside, eps, SIZE, HALF, NORM
    )
    tl.store(target + heads * SIZE + columns, x.to(target.dtype.element_ty), mask=inside)


@triton.jit
def _store_keys(
    source, pool, scale, slot, norm, position, cos, sin, eps,
    HEADS: tl.constexpr, PAGE: tl.constexpr, SIZE: tl.constexpr, HALF: tl.constexpr,
    NORM: tl.constexpr, KIND: tl.constexpr, SMALLEST: tl.constexpr,
    ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Values are keys that are neither normed nor rotated."""
    columns = tl.arange(0, BLOCK)[None, :]
    heads = tl.arange(0, ROWS)[:, None]
    inside = (heads < HEADS) & (columns < SIZE)
    place = tl.load(slot).to(tl.int64)
    rows = (place // PAGE * HEADS + heads) * PAGE + place % PAGE
    x = _normed_and_rotated(
        source + heads * SIZE, norm, position, cos, sin, columns, inside, eps, SIZE, HALF, NORM
    )
    _store_rows(x, pool, scale, rows, columns, heads < HEADS, SIZE, KIND, SMALLEST)


@triton.jit
def _normed_and_rotated(
    source, weight, position, cos, sin, columns, inside, eps,
    SIZE: tl.constexpr, HALF: tl.constexpr, NORM: tl.constexpr,
):  # fmt: skip
    """Heads in rows: [heads, BLOCK]."""
    in_head = columns < SIZE
    x = tl.load(source + columns, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        mean_square = tl.sum(x * x, axis=1) / SIZE
        factor = (1.0 / tl.sqrt(mean_square + eps))[:, None]
        x = x * factor * tl.load(weight + columns, mask=in_head, other=0.0).to(tl.float32)
    if HALF > 0:
        rotated = columns < 2 * HALF
        partner = tl.where(columns < HALF, columns + HALF, columns - HALF)
        partner = tl.where(rotated, partner, columns)
        other = tl.load(source + partner, mask=inside, other=0.0).to(tl.float32)
        if NORM:
            weights = tl.load(weight + partner, mask=in_head, other=0.0).to(tl.float32)
            other = other * factor * weights
        pair = tl.load(position).to(tl.int64) * HALF + columns % HALF
        c = tl.load(cos + pair, mask=rotated, other=1.0)
        s = tl.load(sin + pair, mask=rotated, other=0.0)
        x = x * c + tl.where(columns < HALF, -other, other) * s
    return x


@triton.jit
def _store_rows(
    x, pool, scale, rows, columns, heads_inside,
    SIZE: tl.constexpr, KIND: tl.constexpr, SMALLEST: tl.constexpr,
):  # fmt: skip
    places = pool + rows * SIZE + columns
    inside = heads_inside & (columns < SIZE)
    if KIND == 1:
        step = tl.div_rn(tl.max(tl.abs(x), axis=1), 127.0)
        step = tl.where(step == 0.0, SMALLEST, step)
        # What is no number has no code: the scale says so.
        wrong = tl.max((x != x).to(tl.int32), axis=1)
        step = tl.where(wrong > 0, float("nan"), step)[:, None]
        quotient = tl.where(step == step, tl.div_rn(x, step + tl.zeros_like(x)), 0.0)
        tl.store(places, round_to_int8(quotient), mask=inside)
        tl.store(scale + rows, step, mask=heads_inside)
    elif KIND == 2:
        rounded = round_to_e4m3(x / tl.load(scale))
        tl.store(places, rounded.to(pool.dtype.element_ty), mask=inside)
    elif KIND == 3:
        tl.store(places, round_to_int8(x / tl.load(scale)), mask=inside)
    else:
        tl.store(places, x.to(pool.dtype.element_ty), mask=inside)
