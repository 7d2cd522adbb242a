"""Logits edited where they lie, and tokens handed from one step to the next, without the host."""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from runtime.kernels.triton.sampling import largest_of

_BLOCK = 4096
_EDITS = 256
"""Of a row, made at a time."""


@dataclass(frozen=True, eq=False)
class EditRows:
    """What `runtime.engine.batch.LogitEdits` says, of several rows.

    starts: int32 [rows + 1]: the edits of row r are [starts[r], starts[r + 1]). ids: int32 [edits],
    of a row each once. numbers: float32 [4, edits]: factor, frequency, presence and bias. mask:
    int32 [rows], which of `masks` says what a row allows, -1 for none. masks: int32 [_, words].
    """

    starts: Tensor
    ids: Tensor
    numbers: Tensor
    mask: Tensor
    masks: Tensor


def edit(logits: Tensor, rows: EditRows) -> Tensor:
    """Edits float32 [rows, vocab] in place -> int32 [rows]: 0 where nothing was edited, 1 where it
    was, 2 where the logits were no finite numbers before."""
    count, vocab = logits.shape
    state = torch.empty(count, dtype=torch.int32, device=logits.device)
    if count:
        _edit_kernel[(count,)](
            logits,
            rows.starts,
            rows.ids,
            rows.numbers,
            rows.mask,
            rows.masks,
            state,
            vocab,
            logits.stride(0),
            rows.ids.shape[0],
            rows.masks.shape[1],
            BLOCK=min(_BLOCK, triton.next_power_of_2(vocab)),
            EDITS=_EDITS,
            num_warps=8,
            # Each operation rounds, as on the host.
            enable_fp_fusion=False,
        )
    return state


@triton.jit(do_not_specialize=["num_edits"])
def _edit_kernel(
    logits, starts, ids, numbers, mask, masks, state, vocab, stride, num_edits, words,
    BLOCK: tl.constexpr, EDITS: tl.constexpr,
):  # fmt: skip
    number = tl.program_id(0)
    row = logits + number.to(tl.int64) * stride
    begin, end = tl.load(starts + number), tl.load(starts + number + 1)
    which = tl.load(mask + number)
    found = 0
    if (end > begin) | (which >= 0):
        _, _, sound = largest_of(row, vocab, BLOCK)
        found = tl.where(sound, 1, 2)
        # What one thread reads above, and what it writes below, another one writes.
        tl.debug_barrier()
        for first in range(begin, end, EDITS):
            at = first + tl.arange(0, EDITS)
            inside = at < end
            token = tl.load(ids + at, mask=inside, other=0)
            x = tl.load(row + token, mask=inside, other=0.0)
            factor = tl.load(numbers + at, mask=inside, other=1.0)
            x = tl.where(x > 0.0, tl.div_rn(x, factor), x * factor)
            x -= tl.load(numbers + num_edits + at, mask=inside, other=0.0)
            x -= tl.load(numbers + 2 * num_edits + at, mask=inside, other=0.0)
            x += tl.load(numbers + 3 * num_edits + at, mask=inside, other=0.0)
            tl.store(row + token, x, mask=inside)
        tl.debug_barrier()
        if which >= 0:
            for first in range(0, vocab, BLOCK):
                columns = first + tl.arange(0, BLOCK)
                inside = columns < vocab
                word = tl.load(masks + which * words + columns // 32, mask=inside, other=0)
                banned = ((word >> (columns % 32)) & 1) == 0
                tl.store(row + columns, float("-inf"), mask=inside & banned)
    tl.store(state + number, found)


def hand_over(chosen: Tensor, sources: Tensor, token_ids: Tensor) -> None:
    """token_ids[i] = chosen[sources[i]] where that is not negative; all int32. What stands in place
    of a token becomes 0: whose it is has ended, but its row is computed."""
    count = len(token_ids)
    _hand_over_kernel[(triton.cdiv(count, 64),)](chosen, sources, token_ids, count, BLOCK=64)


@triton.jit(do_not_specialize=["count"])
def _hand_over_kernel(chosen, sources, token_ids, count, BLOCK: tl.constexpr):
    places = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    source = tl.load(sources + places, mask=places < count, other=-1)
    taken = source >= 0
    token = tl.load(chosen + source, mask=taken, other=0)
    tl.store(token_ids + places, tl.maximum(token, 0), mask=taken)
