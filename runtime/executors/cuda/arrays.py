"""The arrays of a step on the device, and how attention is cut into programs."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from runtime.engine.batch import StepBatch
from runtime.kernels.triton import tuning
from runtime.kernels.triton.attention import AttentionWork

Int32 = npt.NDArray[np.int32]
ROWS_OF_A_BLOCK = 64
"""Query rows of a program that works on a prompt."""
MAX_SPLITS = 16


@dataclass(frozen=True, eq=False)
class StepArrays:
    """token_ids, positions, slots: int32 [tokens]. logit_rows: int64 [rows]."""

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    logit_rows: Tensor
    work: AttentionWork


def slots_of(batch: StepBatch, page_size: int) -> Int32:
    """int32 [tokens]: page * page_size + offset of every token of the step."""
    lengths = np.diff(batch.query_starts)
    sequence = np.repeat(np.arange(len(lengths)), lengths)
    pages = batch.page_table[sequence, batch.positions // page_size]
    assert (pages > 0).all(), "a position of the step lies in the reserved page 0"
    return (pages * page_size + batch.positions % page_size).astype(np.int32)


def splits_for(blocks: int, kv_heads: int) -> int:
    """Programs that share a context where there are too few of them to fill the device."""
    wanted = tuning.PROGRAMS_PER_PROCESSOR * tuning.num_processors()
    return max(1, min(MAX_SPLITS, wanted // max(1, blocks * kv_heads)))


def step_arrays(
    batch: StepBatch, page_size: int, heads: int, kv_heads: int, device: torch.device
) -> StepArrays:
    """The arrays of any step."""
    lengths = np.diff(batch.query_starts)
    longest = int(lengths.max()) if len(lengths) else 1
    shared = heads // kv_heads
    tokens_per_block = 1 if longest == 1 else max(1, ROWS_OF_A_BLOCK // shared)
    counts = -(-lengths // tokens_per_block)
    sequence = np.repeat(np.arange(len(lengths)), counts)
    first = np.arange(len(sequence)) - np.repeat(np.cumsum(counts) - counts, counts)

    def on_device(array: npt.NDArray[np.int32]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array, np.int32)).to(device)

    positions = on_device(batch.positions)
    work = AttentionWork(
        positions,
        on_device(batch.query_starts),
        on_device(batch.page_table),
        on_device(sequence.astype(np.int32)),
        on_device((first * tokens_per_block).astype(np.int32)),
        tokens_per_block,
        splits_for(len(sequence), kv_heads),
    )
    return StepArrays(
        on_device(batch.token_ids),
        positions,
        on_device(slots_of(batch, page_size)),
        on_device(batch.logit_rows).to(torch.int64),
        work,
    )
