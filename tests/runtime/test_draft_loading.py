"""A draft model is opened beside the model that it guesses for, or refused by name."""

from pathlib import Path

import pytest

from compile.open_model import open_model
from quant.format.errors import InputError
from runtime.draft_loading import load_draft
from runtime.engine.engine import Engine
from runtime.engine.options import EngineOptions
from runtime.engine.request import Request, SamplingParams
from runtime.loading import load_executor
from tests.runtime.engine.fake_executor import run_to_end
from tests.tiny import tiny_checkpoint

GREEDY = SamplingParams(temperature=0)


def test_a_smaller_model_guesses_for_a_larger_one(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "large")
    tiny_checkpoint(tmp_path / "small", layers=1)
    executor = load_executor(open_model(tmp_path / "large"), num_pages=9, threads=1)
    request = Request("a", (5, 6, 7), 40, GREEDY)
    plain = Engine(executor)
    plain.add(request)
    expected = run_to_end(plain).tokens
    options = EngineOptions(draft_model=str(tmp_path / "small"))
    draft = load_draft(options, executor, threads=1)
    assert draft is not None and draft.num_pages == 9
    engine = Engine(executor, options, clock=lambda: 0.0, draft_executor=draft, check=True)
    engine.add(request)
    assert run_to_end(engine).tokens == expected
    assert engine.stats.draft_tokens > 0


def test_another_vocabulary_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "large")
    tiny_checkpoint(tmp_path / "small", vocab=400)
    executor = load_executor(open_model(tmp_path / "large"), num_pages=9, threads=1)
    with pytest.raises(InputError, match=r"vocabulary of 400 tokens.* has 384"):
        load_draft(EngineOptions(draft_model=str(tmp_path / "small")), executor)


def test_without_one_nothing_is_opened(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "large")
    executor = load_executor(open_model(tmp_path / "large"), num_pages=9, threads=1)
    assert load_draft(EngineOptions(), executor) is None


def test_its_pages_are_bounded_by_who_may_run(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "large")
    executor = load_executor(open_model(tmp_path / "large"), num_pages=999, threads=1)
    options = EngineOptions(draft_model=str(tmp_path / "large"), max_running=2)
    draft = load_draft(options, executor, threads=1)
    assert draft is not None and draft.num_pages == 2 * 1024 // 32 + 2
