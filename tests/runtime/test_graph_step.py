"""What the graph is fed for a batch, and how a step is cut into parts."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from runtime.engine.batch import StepBatch
from runtime.graph_step import FREE_PADDING, PartOfStep, split
from tests.runtime.executors.onnx_models import PAGE_SIZE


def test_sequences_without_tokens_take_no_part() -> None:
    table = np.array([[3, 0], [5, 7], [9, 0]], np.int32)
    batch = StepBatch(
        np.array([8, 9, 4], np.int32),
        np.array([4, 5, 0], np.int32),
        np.array([0, 0, 2, 3], np.int32),
        table,
        np.array([1, 2], np.int32),
    )
    (part,) = split(np.diff(batch.query_starts).astype(np.int64))
    run = PartOfStep(batch, part, PAGE_SIZE)
    fed = {name: values.tolist() for name, values in run.inputs.items()}
    assert fed == {
        "token_ids": [8, 9, 4],
        "positions": [4, 5, 0],
        "query_rows": [[0, 1], [2, 2]],
        "query_lengths": [2, 1],
        "token_places": [0, 1, 2],
        "past_lengths": [4, 0],
        "page_table": [[5], [9]],
        "logit_rows": [1, 2],
    }
    assert run.slots.tolist() == [28, 29, 36] and run.wanted.tolist() == [0, 1]


def test_a_part_of_a_step_finds_its_own_rows() -> None:
    table = np.array([[3, 0], [5, 7], [9, 0]], np.int32)
    ids, positions = np.array([8, 9, 4, 6], np.int32), np.array([1, 4, 5, 0], np.int32)
    starts, rows = np.array([0, 1, 3, 4], np.int32), np.array([0, 2, 3], np.int32)
    batch = StepBatch(ids, positions, starts, table, rows)
    run = PartOfStep(batch, np.array([0, 2]), PAGE_SIZE)
    assert run.inputs["token_ids"].tolist() == [8, 6]
    assert run.inputs["logit_rows"].tolist() == [0, 1] and run.wanted.tolist() == [0, 2]
    assert run.slots.tolist() == [13, 36]
    other = PartOfStep(batch, np.array([1]), PAGE_SIZE)
    assert other.inputs["logit_rows"].tolist() == [1] and other.wanted.tolist() == [1]


@given(st.lists(st.integers(0, 300), min_size=1, max_size=20))
def test_padding_at_most_doubles_a_part(lengths: list[int]) -> None:
    parts = split(np.array(lengths, np.int64))
    ran = sorted(sequence for part in parts for sequence in part.tolist())
    assert ran == [sequence for sequence, length in enumerate(lengths) if length]
    for part in parts:
        taking = [lengths[sequence] for sequence in part]
        assert max(taking) * len(taking) <= 2 * sum(taking) + FREE_PADDING


@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=40), st.integers(30, 90), st.integers(1, 9)
)
def test_a_part_is_within_its_limits(lengths: list[int], tokens: int, sequences: int) -> None:
    parts = split(np.array(lengths, np.int64), tokens, sequences)
    ran = sorted(sequence for part in parts for sequence in part.tolist())
    assert ran == [sequence for sequence, length in enumerate(lengths) if length]
    for part in parts:
        assert len(part) <= sequences
        assert sum(lengths[sequence] for sequence in part) <= tokens
