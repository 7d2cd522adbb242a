"""Options say no in one sentence, and are plain data."""

from dataclasses import asdict
from typing import Any

import pytest

from runtime.engine.engine import Engine
from runtime.engine.options import EngineOptions
from tests.runtime.engine.fake_executor import FakeExecutor


@pytest.mark.parametrize(
    "name", ["max_step_tokens", "max_running", "max_waiting", "max_extra_logit_rows"]
)
def test_an_engine_without_room_is_refused(name: str) -> None:
    limits: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"^{name} must be at least 1, not 0$"):
        EngineOptions(**limits)


def test_a_draft_model_needs_its_executor() -> None:
    with pytest.raises(ValueError, match="draft_model"):
        Engine(FakeExecutor(), EngineOptions(draft_model="small.gguf"))


@pytest.mark.parametrize("name", ["target_step_seconds", "queue_seconds", "deadline_seconds"])
def test_times_are_above_zero(name: str) -> None:
    times: dict[str, Any] = {name: 0.0}
    with pytest.raises(ValueError, match=f"^{name} must be above 0, not 0.0$"):
        EngineOptions(**times)


def test_a_queue_order_that_does_not_exist_is_refused() -> None:
    with pytest.raises(ValueError, match="queue_order must be one of arrival, prefix, not 'x'"):
        EngineOptions(queue_order="x")  # type: ignore[arg-type]


def test_options_survive_as_plain_data() -> None:
    options = EngineOptions(max_running=3)
    assert EngineOptions(**asdict(options)) == options
