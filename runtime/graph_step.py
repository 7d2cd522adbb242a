"""What the decoder step of docs/ONNX.md is fed for a batch, and where its new keys and values go:
whoever runs the graph feeds it the same."""

import numpy as np
import numpy.typing as npt

from compile.onnx_contract import (
    LOGIT_ROWS,
    PAGE_TABLE,
    PAST_LENGTHS,
    POSITIONS,
    QUERY_LENGTHS,
    QUERY_ROWS,
    TOKEN_IDS,
    TOKEN_PLACES,
)
from runtime.engine.batch import StepBatch

Int64 = npt.NDArray[np.int64]
MANY = 1 << 31
FREE_PADDING = 64
"""Padded rows of attention that cost less than reading the weights a second time."""


def split(lengths: Int64, max_tokens: int = MANY, max_sequences: int = MANY) -> list[Int64]:
    """Sequences that run together, by index; none without tokens. Attention pads each to the
    longest of its part: that may double the rows of a part, and no more than that.

    A chunk of a prompt beside many single tokens is the usual case, and becomes two parts.
    max_tokens, max_sequences: of a part; no sequence may have more tokens than that.
    """
    order = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] > 0]
    parts: list[list[int]] = []
    tokens = longest = 0
    for sequence in order.tolist():
        length = int(lengths[sequence])
        padded = longest * (len(parts[-1]) + 1) if parts else 0
        full = tokens + length > max_tokens or len(parts[-1]) == max_sequences if parts else True
        if full or padded > 2 * (tokens + length) + FREE_PADDING:
            parts.append([])
            tokens, longest = 0, length
        parts[-1].append(sequence)
        tokens += length
    return [np.sort(np.array(part, np.int64)) for part in parts]


class PartOfStep:
    """The sequences `part` of a batch, as one run of the graph.

    inputs: int64, by name. slots: int64 [T], places of the new keys and values in the pool seen as
    one row. wanted: which of the batch's logit rows come first in this run's logits, in order.
    own_pages: int64 [B, M], the page table as far as the step's own tokens lie in it.
    """

    def __init__(self, batch: StepBatch, part: Int64, page_size: int) -> None:
        begins = batch.query_starts.astype(np.int64)
        lengths = np.diff(begins)[part]
        starts = np.cumsum(lengths) - lengths
        sequence = np.repeat(np.arange(len(part)), lengths)
        within = np.arange(len(sequence)) - starts[sequence]
        tokens = begins[part][sequence] + within
        positions = batch.positions[tokens].astype(np.int64)
        table = batch.page_table[part].astype(np.int64)
        past = positions[starts]
        assert (positions == past[sequence] + within).all(), "a sequence's tokens are consecutive"
        owners = table[sequence, positions // page_size]
        assert (owners > 0).all(), "a position of the step lies in the reserved page 0"
        self.slots: Int64 = owners * page_size + positions % page_size
        row_of_token = np.full(len(batch.positions), -1, np.int64)
        row_of_token[tokens] = np.arange(len(tokens))
        logit_rows = row_of_token[batch.logit_rows]
        self.wanted: Int64 = np.flatnonzero(logit_rows >= 0)
        queries = np.arange(lengths.max())
        self.own_pages = np.ascontiguousarray(table[:, : int(positions.max()) // page_size + 1])
        past_pages = max(1, -(-int(past.max()) // page_size))
        self.inputs: dict[str, Int64] = {
            TOKEN_IDS: batch.token_ids[tokens].astype(np.int64),
            POSITIONS: positions,
            QUERY_ROWS: starts[:, None] + np.minimum(queries, lengths[:, None] - 1),
            QUERY_LENGTHS: lengths,
            TOKEN_PLACES: sequence * len(queries) + within,
            PAST_LENGTHS: past,
            PAGE_TABLE: np.ascontiguousarray(table[:, :past_pages]),
            # A run that needs no logits asks for a row that nobody reads: no shape is empty.
            LOGIT_ROWS: logit_rows[self.wanted] if len(self.wanted) else starts[:1],
        }
