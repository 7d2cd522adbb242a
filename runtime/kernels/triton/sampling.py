"""The next token of every row, chosen on the device: one number per row leaves it.

The same steps as `runtime.engine.candidates`: temperature, top-k, top-p, min-p, then the token that
a given uniform number falls on, in the order of the vocabulary; the lowest index wins a tie.
Nothing is sorted: the smallest logit that stays is found by halving the range of float32's bits.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

NO_TOKEN = -1
"""In place of a token, where a row's logits are not finite numbers."""
NOTHING_LEFT = -2
"""In place of a token, where they are, but what edits leave is not."""
_BLOCK = 4096


@dataclass(frozen=True, eq=False)
class Choices:
    """How each row is drawn, [rows] each: float32 temperature (0 is greedy), top_p, min_p and
    uniform, in [0, 1); int32 top_k (0 keeps all)."""

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    uniform: Tensor


def choose(logits: Tensor, choices: Choices, edited: Tensor | None = None) -> Tensor:
    """float32 [rows, vocab] -> int32 [rows], NO_TOKEN where the largest logit is not finite or one
    is NaN; NOTHING_LEFT where that is so since it was edited. edited: from `edits.edit`."""
    rows, vocab = logits.shape
    out = torch.empty(rows, dtype=torch.int32, device=logits.device)
    if rows:
        _choose_kernel[(rows,)](
            logits,
            choices.temperature,
            choices.top_k,
            choices.top_p,
            choices.min_p,
            choices.uniform,
            out if edited is None else edited,
            out,
            vocab,
            logits.stride(0),
            EDITED=edited is not None,
            WRONG=NO_TOKEN,
            NOTHING=NOTHING_LEFT,
            BLOCK=min(_BLOCK, triton.next_power_of_2(vocab)),
            num_warps=8,
        )
    return out


@triton.jit
def _choose_kernel(
    logits, temperature, top_k, top_p, min_p, uniform, edited, out, vocab, stride,
    EDITED: tl.constexpr, WRONG: tl.constexpr, NOTHING: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0)
    row = logits + number.to(tl.int64) * stride
    best, token, sound = largest_of(row, vocab, BLOCK)
    heat = tl.load(temperature + number)
    if sound & (heat > 0.0):
        cold = 1.0 / tl.maximum(heat, 1e-30)
        lowest = _key(tl.full((1,), float("-inf"), tl.float32))
        highest = _key(tl.full((1,), 0.0, tl.float32) + best)
        floor, floor_key = tl.min(lowest, axis=0).to(tl.int64), tl.max(highest, axis=0).to(tl.int64)
        count = tl.load(top_k + number)
        limit, ties = _smallest_of_top_k(row, vocab, count, floor, floor_key, BLOCK)
        part = tl.load(top_p + number)
        limit, ties = _smallest_of_top_p(
            row, vocab, part, best, cold, limit, ties, floor_key, BLOCK
        )
        least = tl.load(min_p + number)
        token = _drawn(row, vocab, tl.load(uniform + number), best, cold, limit, ties, least, BLOCK)
    token = tl.where(sound, token, WRONG)
    if EDITED:
        state = tl.load(edited + number)
        token = tl.where((state == 1) & (token == WRONG), NOTHING, token)
        token = tl.where(state == 2, WRONG, token)
    tl.store(out + number, token)


@triton.jit
def _key(x):
    """int32 that are ordered as the float32 are; the two zeros are one."""
    bits = tl.where(x == 0.0, 0.0, x).to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def largest_of(row, vocab, BLOCK: tl.constexpr):
    """The largest logit, its lowest index, and whether all are numbers and it is finite."""
    best = -float("inf")
    token = 0
    wrong = 0
    for first in range(0, vocab, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        x = tl.load(row + columns, mask=columns < vocab, other=-float("inf"))
        wrong += tl.sum((x != x).to(tl.int32), axis=0)
        peak = tl.max(x, axis=0)
        where = tl.min(tl.where(x == peak, columns, 2147483647), axis=0)
        token = tl.where(peak > best, where, token)
        best = tl.maximum(best, peak)
    sound = (wrong == 0) & (best > -float("inf")) & (best < float("inf"))
    return best, token, sound


@triton.jit
def _smallest_of_top_k(row, vocab, count, floor, ceiling, BLOCK: tl.constexpr):
    """The key of the count-th largest logit, and how many of its equals stay."""
    limit = floor
    ties = vocab
    if (count > 0) & (count < vocab):
        low, high = floor, ceiling + 1
        for _ in range(33):
            middle = (low + high) >> 1
            enough = _count_from(row, vocab, middle, BLOCK) >= count
            low = tl.where(enough, middle, low)
            high = tl.where(enough, high, middle)
        limit = low
        ties = count - _count_from(row, vocab, low + 1, BLOCK)
    return limit, ties


@triton.jit
def _smallest_of_top_p(
    row, vocab, part, best, cold, limit, ties, ceiling, BLOCK: tl.constexpr
):  # fmt: skip
    """The key of the smallest logit of the nucleus, and how many of its equals stay."""
    if part < 1.0:
        above = _mass_from(row, vocab, limit + 1, best, cold, BLOCK)
        equal = _mass_from(row, vocab, limit, best, cold, BLOCK) - above
        number = _count_from(row, vocab, limit, BLOCK) - _count_from(row, vocab, limit + 1, BLOCK)
        share = tl.minimum(ties, number) / tl.maximum(number, 1).to(tl.float32)
        goal = part * (above + equal * share)
        low, high = limit, ceiling + 1
        for _ in range(33):
            middle = (low + high) >> 1
            enough = _mass_from(row, vocab, middle, best, cold, BLOCK) >= goal
            low = tl.where(enough, tl.maximum(middle, low), low)
            high = tl.where(enough, high, middle)
        above = _mass_from(row, vocab, low + 1, best, cold, BLOCK)
        number = _count_from(row, vocab, low, BLOCK) - _count_from(row, vocab, low + 1, BLOCK)
        each = (_mass_from(row, vocab, low, best, cold, BLOCK) - above) / number.to(tl.float32)
        wanted = tl.ceil((goal - above) / tl.maximum(each, 1e-38)).to(tl.int32)
        allowed = tl.where(low == limit, ties, number)
        ties = tl.minimum(tl.maximum(wanted, 1), allowed)
        limit = low
    return limit, ties


@triton.jit
def _count_from(row, vocab, limit, BLOCK: tl.constexpr):
    """How many logits have this key or a larger one."""
    total = 0
    for first in range(0, vocab, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        x = tl.load(row + columns, mask=columns < vocab, other=0.0)
        inside = (columns < vocab) & (_key(x).to(tl.int64) >= limit)
        total += tl.sum(inside.to(tl.int32), axis=0)
    return total


@triton.jit
def _mass_from(row, vocab, limit, best, cold, BLOCK: tl.constexpr):
    """The weights of the logits with this key or a larger one."""
    total = 0.0
    for first in range(0, vocab, BLOCK):
        columns = first + tl.arange(0, BLOCK)
        x = tl.load(row + columns, mask=columns < vocab, other=-float("inf"))
        weights = tl.exp((x - best) * cold)
        total += tl.sum(tl.where(_key(x).to(tl.int64) >= limit, weights, 0.0), axis=0)
    return total


@triton.jit
def _kept(row, vocab, first, best, cold, limit, ties, seen, least, BLOCK: tl.constexpr):
    """Weights of a block, 0 for what is left out, and how many equals of the limit came so far."""
    columns = first + tl.arange(0, BLOCK)
    x = tl.load(row + columns, mask=columns < vocab, other=-float("inf"))
    weights = tl.exp((x - best) * cold)
    keys = _key(x).to(tl.int64)
    equal = ((keys == limit) & (columns < vocab)).to(tl.int32)
    rank = seen + tl.cumsum(equal, axis=0) - equal
    stays = (keys > limit) | ((equal == 1) & (rank < ties))
    stays = stays & (weights >= least) & (columns < vocab)
    return tl.where(stays, weights, 0.0), seen + tl.sum(equal, axis=0)


@triton.jit
def _drawn(row, vocab, uniform, best, cold, limit, ties, least, BLOCK: tl.constexpr):
    """The first index whose running sum is above uniform times the whole."""
    total = 0.0
    seen = 0
    for first in range(0, vocab, BLOCK):
        weights, seen = _kept(row, vocab, first, best, cold, limit, ties, seen, least, BLOCK)
        total += tl.sum(weights, axis=0)
    target = uniform * total
    running = 0.0
    seen = 0
    token = -1
    last = 0
    for first in range(0, vocab, BLOCK):
        weights, seen = _kept(row, vocab, first, best, cold, limit, ties, seen, least, BLOCK)
        columns = first + tl.arange(0, BLOCK)
        sums = running + tl.cumsum(weights, axis=0)
        beyond = (sums > target) & (weights > 0.0)
        here = tl.min(tl.where(beyond, columns, 2147483647), axis=0)
        token = tl.where((token < 0) & (here < 2147483647), here, token)
        last = tl.maximum(last, tl.max(tl.where(weights > 0.0, columns, 0), axis=0))
        running += tl.sum(weights, axis=0)
    # Rounding may leave the target just beyond the last running sum.
    return tl.where(token < 0, last, token)
