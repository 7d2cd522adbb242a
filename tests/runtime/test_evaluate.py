"""Evaluation against a slow, obvious second implementation, on an executor made of a table."""

import math
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.format.errors import InputError
from runtime.engine.batch import StepBatch
from runtime.evaluate import evaluate
from runtime.evaluation.intervals import cut_blocks
from runtime.evaluation.protocol import Protocol, split_windows
from runtime.evaluation.scores import log_softmax

VOCAB = 11


@dataclass
class TableExecutor:
    """Logits depend on the last token and the position, as a real model's would.

    It checks what a real executor relies on: pages, positions, one contiguous sequence.
    """

    seed: int
    vocab_size: int = VOCAB
    max_positions: int = 4096
    page_size: int = 4
    num_pages: int = 1025
    written: int = 0
    steps: list[int] = field(default_factory=list)
    _logits: npt.NDArray[np.float32] | None = None

    def row(self, token: int, position: int) -> npt.NDArray[np.float32]:
        rng = np.random.default_rng((self.seed, token, position))
        return rng.normal(scale=2.0, size=self.vocab_size).astype(np.float32)

    def step(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        count = len(batch.token_ids)
        assert batch.query_starts.tolist() == [0, count]
        start = int(batch.positions[0])
        assert batch.positions.tolist() == list(range(start, start + count))
        assert start in (0, self.written), "a window continues where its last chunk ended"
        self.written = start + count
        pages = batch.page_table[0, : -(-self.written // self.page_size)].tolist()
        assert 0 not in pages and len(set(pages)) == len(pages) and max(pages) < self.num_pages
        self.steps.append(count)
        if self._logits is not None:
            self._logits.fill(np.nan)  # the last step's logits are no longer valid
        rows = [
            self.row(int(batch.token_ids[i]), int(batch.positions[i])) for i in batch.logit_rows
        ]
        self._logits = np.stack(rows)
        return self._logits

    def close(self) -> None: ...


def slow_probabilities(executor: TableExecutor, tokens: list[int]) -> list[list[float]]:
    """Softmax of each position by the definition, in Python floats."""
    rows = []
    for position, token in enumerate(tokens):
        weights = [math.exp(float(value)) for value in executor.row(token, position)]
        rows.append([weight / sum(weights) for weight in weights])
    return rows


@settings(max_examples=20, deadline=None)
@given(
    length=st.integers(5, 400),
    window=st.integers(3, 300),
    seed=st.integers(0, 1000),
    llama=st.booleans(),
    bos=st.none() | st.integers(0, VOCAB - 1),
)
def test_figures_follow_their_definitions(
    length: int, window: int, seed: int, llama: bool, bos: int | None
) -> None:
    tokens = np.random.default_rng(seed).integers(0, VOCAB, length).tolist()
    protocol = Protocol("llama.cpp" if llama else "paper", window, bos)
    if length < window:
        with pytest.raises(InputError, match=f"{length} tokens.*{window}"):
            evaluate(TableExecutor(1), tokens, protocol=protocol)
        return
    losses, base_losses, divergences, agreements = [], [], [], []
    for first in range(0, length - window + 1, window):
        part = tokens[first : first + window]
        if llama and bos is not None:
            part = [bos, *part[1:]]
        p_rows = slow_probabilities(TableExecutor(1), part)
        q_rows = slow_probabilities(TableExecutor(2), part)
        for here, target in enumerate(part[1:]):
            if llama and here < window // 2:
                continue
            p, q = p_rows[here], q_rows[here]
            losses.append(-math.log(p[target]))
            base_losses.append(-math.log(q[target]))
            divergences.append(sum(b * math.log(b / a) for a, b in zip(p, q, strict=True)))
            agreements.append(float(p.index(max(p)) == q.index(max(q))))

    measured = evaluate(TableExecutor(1), tokens, baseline=TableExecutor(2), protocol=protocol)

    count = len(losses)
    assert measured.tokens == count
    # Both sides are float64 sums of float32 logits: only the order of additions differs.
    assert measured.perplexity == pytest.approx(math.exp(sum(losses) / count), rel=1e-9)
    ratio = math.exp((sum(losses) - sum(base_losses)) / count)
    assert measured.ppl_ratio == pytest.approx(ratio, rel=1e-9)
    assert measured.kld is not None and measured.top1 is not None
    assert measured.kld.mean == pytest.approx(sum(divergences) / count, rel=1e-9)
    assert measured.kld.max == pytest.approx(max(divergences), rel=1e-9)
    assert measured.kld.p99 == pytest.approx(float(np.quantile(divergences, 0.99)), rel=1e-9)
    assert measured.top1.mean == pytest.approx(sum(agreements) / count)
    assert measured.kld.p999 == pytest.approx(float(np.quantile(divergences, 0.999)), rel=1e-9)
    assert measured.kld.median == pytest.approx(float(np.median(divergences)), rel=1e-9)
    shifts = [math.exp(-a) - math.exp(-b) for a, b in zip(losses, base_losses, strict=True)]
    assert measured.delta_p is not None and measured.kld_histogram is not None
    assert measured.delta_p.rms == pytest.approx(math.sqrt(sum(d * d for d in shifts) / count))
    assert sum(measured.kld_histogram.counts) == count
    assert measured.ln_ppl_ratio is not None and measured.ppl_ratio is not None
    differences = [a - b for a, b in zip(losses, base_losses, strict=True)]
    starts = [*cut_blocks(count).starts.tolist(), count]
    for values, found in ((differences, measured.ln_ppl_ratio.se), (divergences, measured.kld.se)):
        expected = slow_error(values, starts)
        assert (found is None) == (expected is None)
        assert (found or 0) == pytest.approx(expected or 0, rel=1e-6, abs=1e-12)


def slow_error(values: list[float], starts: list[int]) -> float | None:
    """Of the mean: how far the sums of blocks are from what the mean expects of them."""
    blocks = [values[a:b] for a, b in pairwise(starts)]
    if len(blocks) == 1:
        return None
    mean = sum(values) / len(values)
    off = [sum(block) - len(block) * mean for block in blocks]
    variance = sum(d * d for d in off) * len(blocks) / (len(blocks) - 1)
    return math.sqrt(variance) / len(values)


def test_llama_cpp_scores_255_of_512_after_the_middle() -> None:
    protocol = Protocol("llama.cpp", 512, bos_id=0)
    executor = TableExecutor(1)
    measured = evaluate(executor, [3] * 1100, protocol=protocol)
    assert measured.tokens == 2 * 255 and measured.bos_id == 0
    assert sum(executor.steps) == 2 * 511
    assert protocol.windows([3] * 1100)[:, :2].tolist() == [[0, 3], [0, 3]]


def test_a_model_does_not_diverge_from_itself() -> None:
    tokens = list(range(VOCAB)) * 20
    measured = evaluate(
        TableExecutor(3), tokens, baseline=TableExecutor(3), protocol=Protocol(window=64)
    )
    assert measured.kld is not None and measured.top1 is not None
    assert (measured.kld.mean, measured.kld.max) == (0.0, 0.0)
    assert measured.top1.mean == 1.0 and measured.ppl_ratio == 1.0


def test_a_certain_baseline_makes_no_nan() -> None:
    class Certain(TableExecutor):
        def row(self, token: int, position: int) -> npt.NDArray[np.float32]:
            logits = np.full(VOCAB, -np.inf, np.float32)
            logits[0] = 0.0
            return logits

    tokens = [0] * 32
    measured = evaluate(TableExecutor(1), tokens, baseline=Certain(2), protocol=Protocol(window=32))
    assert measured.kld is not None
    # All of the baseline's mass is on the true token, so its divergence is the model's loss.
    assert measured.kld.mean == pytest.approx(math.log(measured.perplexity), rel=1e-12)


def test_without_a_baseline_nothing_is_compared() -> None:
    measured = evaluate(TableExecutor(1), [1, 2, 3, 4] * 8, protocol=Protocol(window=16))
    assert (measured.kld, measured.top1, measured.ppl_ratio) == (None, None, None)
    assert measured.tokens == 2 * 15


def test_logits_in_memory_are_bounded_by_a_chunk() -> None:
    executor = TableExecutor(1)
    evaluate(executor, [1] * 1000, protocol=Protocol(window=500))
    assert max(executor.steps) <= 128
    assert sum(executor.steps) == 2 * 499, "the last token of a window predicts nothing"


def test_progress_counts_windows() -> None:
    seen: list[tuple[int, int]] = []
    evaluate(
        TableExecutor(1),
        [1] * 70,
        protocol=Protocol(window=10),
        on_progress=lambda d, t, _w: seen.append((d, t)),
    )
    assert seen == [(done, 7) for done in range(1, 8)]


@pytest.mark.parametrize(
    ("executor", "window", "sentence"),
    [
        (TableExecutor(1, max_positions=8), 16, "context of 8"),
        (TableExecutor(1, num_pages=3), 16, "the 8 of the page pool"),
        (TableExecutor(1), 1, "at least 3"),
        (TableExecutor(1), 0, "at least 3"),
    ],
)
def test_windows_that_cannot_run_are_refused(
    executor: TableExecutor, window: int, sentence: str
) -> None:
    with pytest.raises(InputError, match=sentence):
        evaluate(executor, [1] * 64, protocol=Protocol(window=window))


def test_baseline_of_another_vocabulary_is_refused() -> None:
    with pytest.raises(InputError, match="12 tokens and the model 11"):
        evaluate(
            TableExecutor(1),
            [1] * 8,
            baseline=TableExecutor(1, vocab_size=12),
            protocol=Protocol(window=4),
        )


def test_windows_do_not_overlap_and_drop_the_tail() -> None:
    assert split_windows(list(range(11)), 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]


def test_log_softmax_survives_large_logits() -> None:
    rows = log_softmax(np.array([[1e4, 0.0], [-1e30, -1e30]], np.float32))
    assert rows[0].tolist() == [0.0, -1e4]
    assert rows[1].tolist() == [-math.log(2)] * 2
