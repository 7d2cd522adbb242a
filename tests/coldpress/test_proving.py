"""How the probe of `verify` is run."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coldpress.proving import spans, verify
from runtime.engine.batch import StepBatch
from runtime.executors.cpu import CpuExecutor
from tests.tiny import tiny_checkpoint


@given(st.integers(1, 200))
def test_spans_cover_every_token_once(count: int) -> None:
    found = spans(count)
    assert [n for start, stop in found for n in range(start, stop)] == list(range(count))
    assert count <= 11 or any(stop - start == 1 for start, stop in found)


def test_the_probe_reads_back_what_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tiny_checkpoint(tmp_path / "model")
    firsts: list[int] = []
    step = CpuExecutor.step

    def noted(self: CpuExecutor, batch: StepBatch) -> object:
        firsts.append(int(batch.positions[0]))
        return step(self, batch)

    monkeypatch.setattr(CpuExecutor, "step", noted)
    report = verify(checkpoint, against=checkpoint)
    assert report.passed and report.logits is not None and report.logits.tokens == 32
    assert report.logits.max_difference == 0
    assert firsts == [0, 11, 12, 13, 21] * 2
