"""The arrays of a step on the device, and how attention is cut into programs."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from runtime.engine.batch import Follows, StepBatch
from runtime.executors.cuda.staging import Staging
from runtime.kernels.triton import tuning
from runtime.kernels.triton.attention import AttentionWork

Int32 = npt.NDArray[np.int32]
ROWS_OF_A_BLOCK = 64
"""Query rows of a program that works on a prompt."""
MAX_SPLITS = 32


@dataclass(frozen=True, eq=False)
class StepArrays:
    """token_ids, positions, slots: int32 [tokens]. sources: int32 [tokens], the row of the step
    before whose token stands in each place, -1 where `token_ids` has it. logit_rows: int32
    [rows]."""

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    sources: Tensor
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


def sources_of(batch: StepBatch, follows: Follows | None) -> Int32:
    """int32 [tokens]: see `StepArrays`."""
    return np.full(len(batch.token_ids), -1, np.int32) if follows is None else follows.rows


def step_arrays(
    batch: StepBatch,
    follows: Follows | None,
    page_size: int,
    heads: int,
    kv_heads: int,
    staging: Staging,
) -> StepArrays:
    """The arrays of any step."""
    lengths = np.diff(batch.query_starts)
    longest = int(lengths.max()) if len(lengths) else 1
    shared = heads // kv_heads
    tokens_per_block = 1 if longest == 1 else max(1, ROWS_OF_A_BLOCK // shared)
    counts = -(-lengths // tokens_per_block)
    sequence = np.repeat(np.arange(len(lengths)), counts)
    first = np.arange(len(sequence)) - np.repeat(np.cumsum(counts) - counts, counts)
    token_ids, positions, slots, sources, rows, starts, table, of_block, start = staging.upload(
        [
            batch.token_ids,
            batch.positions,
            slots_of(batch, page_size),
            sources_of(batch, follows),
            batch.logit_rows,
            batch.query_starts,
            batch.page_table,
            sequence.astype(np.int32),
            (first * tokens_per_block).astype(np.int32),
        ]
    )
    splits = splits_for(len(sequence), kv_heads)
    work = AttentionWork(positions, starts, table, of_block, start, tokens_per_block, splits)
    return StepArrays(token_ids, positions, slots, sources, rows, work)
