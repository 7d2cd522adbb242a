"""Options say no in one sentence, and are plain data."""

from dataclasses import asdict
from typing import Any

import pytest

from runtime.engine.options import EngineOptions


@pytest.mark.parametrize(
    "name", ["max_step_tokens", "max_running", "max_waiting", "max_extra_logit_rows"]
)
def test_an_engine_without_room_is_refused(name: str) -> None:
    limits: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"^{name} must be at least 1, not 0$"):
        EngineOptions(**limits)


def test_options_survive_as_plain_data() -> None:
    options = EngineOptions(max_running=3)
    assert EngineOptions(**asdict(options)) == options
