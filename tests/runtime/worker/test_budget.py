"""A12: what a model takes is known, said and refused before its weights are read."""

from dataclasses import replace
from pathlib import Path

import pytest

from compile.open_model import open_model
from quant.format.errors import InputError
from quant.format.scheme import IntScheme, PerChannel, PerGroup
from runtime.draft_loading import load_draft
from runtime.engine.options import EngineOptions
from runtime.footprint import held_bytes
from runtime.kv_cache import kv_bytes_per_page
from runtime.loading import load_executor
from runtime.machine import HEADROOM_BYTES
from runtime.worker.budget import Budget, plan_memory
from runtime.worker.opening import load_model
from runtime.worker.spec import ModelSpec
from tests.tiny import tiny_checkpoint, tiny_model

MODEL = tiny_model(max_positions=256)
PAGE = kv_bytes_per_page(MODEL.program, 32, "float16")
SPEC = ModelSpec(Path("m"), "m", engine=EngineOptions())
WEIGHTS = sum(held_bytes(MODEL, name) for name in MODEL.weights.names())


@pytest.mark.parametrize(
    "scheme", [None, IntScheme(4, True, PerGroup(32)), IntScheme(8, True, PerChannel())]
)
def test_weights_are_foreseen(scheme: IntScheme | None) -> None:
    """Never by more than a quarter off what the executor then holds, or pads."""
    model = tiny_model(scheme=scheme, hidden_size=256, intermediate=512, vocab=512)
    held = load_executor(model, context_tokens=64, threads=1).weight_bytes
    foreseen = sum(held_bytes(model, name) for name in model.weights.names())
    assert 0.75 * held <= foreseen <= 1.34 * held


def test_by_default_the_pool_holds_sixteen_contexts_if_there_is_room() -> None:
    budget = plan_memory(SPEC, MODEL, free=1 << 40)
    assert budget is not None
    assert (budget.pool_tokens, budget.pool) == (16 * 256, (16 * 256 // 32 + 1) * PAGE)
    unknown = plan_memory(SPEC, MODEL, free=0)
    assert unknown is not None and unknown.pool == budget.pool and "free" not in unknown.sentence()


def test_the_pool_shrinks_to_what_the_weights_leave() -> None:
    """A quarter of what is free would not fit here beside the weights."""
    free = WEIGHTS + HEADROOM_BYTES + 20 * PAGE
    budget = plan_memory(SPEC, MODEL, free)
    assert budget is not None and budget.pool == 20 * PAGE and budget.needed <= free


def test_a_worker_that_comes_after_memory_has_shrunk_takes_less(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A12: the kernel has ended the one before it. Each asks anew."""
    spec = replace(SPEC, path=tiny_checkpoint(tmp_path / "m", max_positions=256))

    def opened(free: int) -> Budget:
        monkeypatch.setattr("runtime.machine.available_memory_bytes", lambda: free)
        budget = load_model(spec).budget
        assert budget is not None and budget.needed <= free
        return budget

    before = opened(1 << 40)
    after = opened(before.needed - before.pool // 2)
    assert after.pool < before.pool
    with pytest.raises(InputError, match="does not fit into memory"):
        opened(before.needed - before.pool)


def test_what_cannot_fit_is_refused_with_the_arithmetic() -> None:
    one_context = 9 * PAGE
    least = WEIGHTS + HEADROOM_BYTES + one_context
    assert plan_memory(SPEC, MODEL, least) is not None
    with pytest.raises(InputError) as refusal:
        plan_memory(SPEC, MODEL, least - 1)
    sentence = str(refusal.value)
    for size in (WEIGHTS, one_context, HEADROOM_BYTES, least, least - 1):
        assert f"{size / 10**6:,.0f} MB" in sentence
    assert "--kv-cache" in sentence and "\n" not in sentence


def test_a_pool_that_is_asked_for_is_never_made_smaller() -> None:
    spec = ModelSpec(Path("m"), "m", kv_cache_bytes=40 * PAGE)
    free = WEIGHTS + HEADROOM_BYTES + 40 * PAGE
    budget = plan_memory(spec, MODEL, free)
    assert budget is not None and budget.pool == 40 * PAGE
    with pytest.raises(InputError, match="does not fit into memory"):
        plan_memory(spec, MODEL, free - 1)


def test_the_pool_is_as_large_as_was_said() -> None:
    budget = plan_memory(SPEC, MODEL, free=1 << 40)
    assert budget is not None
    executor = load_executor(MODEL, kv_cache_bytes=budget.pool, threads=1)
    assert (executor.num_pages - 1) * executor.page_size == budget.pool_tokens
    assert getattr(executor, "cache_bytes", None) == budget.pool


def test_the_model_that_guesses_counts(tmp_path: Path) -> None:
    path = tiny_checkpoint(tmp_path / "draft", max_positions=64)
    spec = replace(SPEC, engine=EngineOptions(draft_model=str(path), max_running=1))
    alone, both = plan_memory(SPEC, MODEL, free=1 << 40), plan_memory(spec, MODEL, free=1 << 40)
    assert alone is not None and both is not None and alone.draft == 0
    draft = open_model(path)
    executor = load_executor(MODEL, kv_cache_bytes=both.pool, threads=1)
    loaded = load_draft(spec.engine, executor, threads=1)
    assert loaded is not None
    weights = sum(held_bytes(draft, name) for name in draft.weights.names())
    assert both.draft == weights + getattr(loaded, "cache_bytes", 0)
    assert both.needed == alone.needed + both.draft
    assert "draft model" in both.sentence() and "draft model" not in alone.sentence()
    assert both.least() == {**alone.least(), "draft model": both.draft}
    assert both.as_object()["needed"] == both.needed
    with pytest.raises(InputError, match="draft model"):
        plan_memory(spec, MODEL, free=alone.needed - alone.pool + alone.least_pool)
