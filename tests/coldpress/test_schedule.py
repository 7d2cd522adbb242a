"""A mixed schedule holds what it says, and finds an executor whose pages are not kept apart."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coldpress.schedule import LEAST, PAGE_SIZE, Probe, probe_of, run_mixed, run_plain
from compile.verify import PROBE_TOKENS, probe_tokens
from runtime.engine.batch import StepBatch
from runtime.executors.cpu import CpuExecutor
from tests.tiny import tiny_model

VOCAB = 50


class Remembering:
    """Logits tell the sum of all tokens up to a row, read back from pages: the plainest cache."""

    vocab_size, page_size, max_positions = VOCAB, PAGE_SIZE, 1000

    def __init__(self, num_pages: int) -> None:
        self.num_pages = num_pages
        self.pages = np.full((num_pages, PAGE_SIZE), -1, np.int64)
        self.rows: list[int] = []

    def step(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        assert len(set(batch.positions.tolist())) > 0
        place = np.repeat(np.arange(len(batch.page_table)), np.diff(batch.query_starts))
        pages = batch.page_table[place, batch.positions // PAGE_SIZE]
        assert (pages > 0).all(), "page 0 is nobody's"
        self.pages[pages, batch.positions % PAGE_SIZE] = batch.token_ids
        found = np.zeros((len(batch.logit_rows), VOCAB), np.float32)
        for row, index in enumerate(batch.logit_rows):
            count = int(batch.positions[index]) + 1
            table = batch.page_table[place[index]]
            context = self.pages[table].reshape(-1)[:count]
            assert (context >= 0).all(), "a token was never computed"
            found[row, 0] = float(context @ np.arange(1, count + 1) % 9973)
        self.rows.append(len(batch.token_ids))
        return found

    def close(self) -> None:
        pass


def tokens_of(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).permutation(np.arange(count) % VOCAB).tolist()  # type: ignore[no-any-return]


@given(st.integers(1, 150), st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_both_ways_see_the_same_tokens(count: int, seed: int) -> None:
    tokens = tokens_of(count, seed)
    probe = probe_of(tokens)
    assert [*(t for part in probe.sequences for t in part), *probe.branch] == tokens
    mixed, facts = run_mixed(Remembering(probe.pages), probe)
    plain = run_plain(Remembering(probe.pages), probe)
    assert mixed.shape == (count, VOCAB)
    assert np.array_equal(mixed, plain)
    assert (facts.shared_tokens > 0) == (count >= LEAST) == bool(probe.branch)


def test_the_probe_of_verify_has_all_that_it_promises() -> None:
    model = tiny_model()
    tokens = probe_tokens(model)
    probe = probe_of(tokens)
    _, facts = run_mixed(Remembering(probe.pages), replace_vocab(probe))
    assert len(tokens) == PROBE_TOKENS
    assert facts.preemptions >= 1 and facts.chunks >= 5 and facts.single_tokens >= 20
    assert facts.shared_tokens >= 2 * PAGE_SIZE


def replace_vocab(probe: Probe) -> Probe:
    def short(tokens: tuple[int, ...], first: int) -> tuple[int, ...]:
        return (first, *(token % VOCAB for token in tokens[1:]))

    parts = tuple(short(tokens, n) for n, tokens in enumerate(probe.sequences))
    return replace(probe, sequences=parts, branch=short(probe.branch, 9))


class Leaking(Remembering):
    """Writes each token one page too far where a sequence has another one."""

    def step(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        logits = super().step(batch)
        self.pages[batch.page_table[0, 0], 3] = 7
        return logits


def test_an_executor_that_mixes_up_pages_is_found() -> None:
    probe = probe_of(tokens_of(96))
    mixed, _ = run_mixed(Leaking(probe.pages), probe)
    assert not np.array_equal(mixed, run_plain(Remembering(probe.pages), probe))


@pytest.mark.parametrize("options", [{}, {"layers": 1, "kv_heads": 4}], ids=str)
def test_the_native_executor_gives_the_same_bits_both_ways(options: dict[str, Any]) -> None:
    model = tiny_model(**options)
    probe = probe_of(probe_tokens(model))

    def executor() -> CpuExecutor:
        return CpuExecutor(model, num_pages=probe.pages, page_size=PAGE_SIZE, threads=1)

    mixed, _ = run_mixed(executor(), probe)
    assert np.array_equal(mixed, run_plain(executor(), probe))
