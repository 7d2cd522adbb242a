"""A baseline that was kept says what it said, to the bound that its 16 bits allow."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.format.errors import FileFormatError
from runtime.evaluate import evaluate
from runtime.evaluation.baseline import (
    CODES,
    LOSS,
    KeepingBaseline,
    KeptBaseline,
    LiveBaseline,
    decode,
    encode,
    kept_bytes,
)
from runtime.evaluation.protocol import Protocol
from runtime.evaluation.scores import reference_of, score_against
from tests.runtime.test_evaluate import VOCAB, TableExecutor

PROTOCOL = Protocol("llama.cpp", 64, bos_id=3)
TOKENS = np.random.default_rng(5).integers(0, VOCAB, 200).tolist()
SCORED = 3 * PROTOCOL.scored


@given(
    seed=st.integers(0, 10_000),
    vocab=st.integers(2, 3000),
    sharpness=st.floats(0, 30),
    distance=st.floats(0, 3),
)
def test_divergences_move_no_more_than_the_bound(
    seed: int, vocab: int, sharpness: float, distance: float
) -> None:
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((2, 4, vocab))
    base = (sharpness * noise[0]).astype(np.float32)
    model = (base + distance * noise[1]).astype(np.float32)
    targets = rng.integers(0, vocab, 4).astype(np.int32)
    exact = reference_of(base, targets)
    kept = decode(encode(exact.probabilities), exact.loss, exact.top)
    assert np.allclose(kept.probabilities.sum(axis=1), 1, rtol=1e-12)
    true, found = (score_against(r, model, targets) for r in (exact, kept))
    assert np.array_equal(true.baseline_loss, found.baseline_loss)
    assert np.array_equal(true.agreement, found.agreement)
    log_p = model - model.max(axis=1, keepdims=True)
    log_p = log_p - np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    gap = exact.log_probabilities - log_p
    second_moment = (exact.probabilities * gap**2).sum(axis=1)
    s = 3 / 131070 * vocab ** (1 / 3)
    # The bound holds to second order in s; the third is smaller than s itself, by far.
    bound = (s * np.sqrt(second_moment) + s**2 / 2) * (1 + s) + 1e-6 * s
    assert (np.abs(true.divergence - found.divergence) <= bound).all()


def test_what_was_kept_gives_the_same_figures_to_the_bit(tmp_path: Path) -> None:
    live = LiveBaseline(TableExecutor(2), PROTOCOL)
    with KeepingBaseline(live, tmp_path, SCORED) as keeping:
        first = evaluate(TableExecutor(1), TOKENS, baseline=keeping, protocol=PROTOCOL)
    again = KeptBaseline(tmp_path, SCORED)
    assert again.vocab_size == VOCAB
    second = evaluate(TableExecutor(1), TOKENS, baseline=again, protocol=PROTOCOL)
    assert first == second
    exact = evaluate(TableExecutor(1), TOKENS, baseline=TableExecutor(2), protocol=PROTOCOL)
    assert first.kld is not None and exact.kld is not None
    assert first.kld.mean != exact.kld.mean
    assert first.kld.mean == pytest.approx(exact.kld.mean, rel=1e-4)
    for name in ("perplexity", "ppl_ratio", "top1", "ln_ppl_ratio", "baseline_perplexity"):
        assert getattr(first, name) == getattr(exact, name)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size == kept_bytes(SCORED, VOCAB)


@pytest.mark.parametrize("damage", ["cut", "empty", "absent", "other"])
def test_damaged_files_are_refused_by_name(damage: str, tmp_path: Path) -> None:
    live = LiveBaseline(TableExecutor(2), PROTOCOL)
    with KeepingBaseline(live, tmp_path, SCORED) as keeping:
        evaluate(TableExecutor(1), TOKENS, baseline=keeping, protocol=PROTOCOL)
    path = tmp_path / (LOSS if damage == "other" else CODES)
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "absent":
        path.unlink()
    else:
        np.save(path, np.zeros(SCORED, np.float32))
    with pytest.raises(FileFormatError, match=path.name):
        KeptBaseline(tmp_path, SCORED)


def test_an_evaluation_that_stops_half_way_is_not_whole(tmp_path: Path) -> None:
    live = LiveBaseline(TableExecutor(2), PROTOCOL)
    with pytest.raises(AssertionError), KeepingBaseline(live, tmp_path, SCORED) as keeping:
        evaluate(TableExecutor(1), TOKENS[:64], baseline=keeping, protocol=PROTOCOL)
    folder = tmp_path / "other"
    folder.mkdir()
    with pytest.raises(KeyboardInterrupt), KeepingBaseline(live, folder, SCORED):
        raise KeyboardInterrupt
