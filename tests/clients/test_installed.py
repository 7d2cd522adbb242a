"""`make test-clients` runs every client: none is skipped there for want of being installed."""

import os
from importlib.util import find_spec

import pytest

CLIENTS = ("openai", "ollama", "langchain_openai", "schemathesis")
OLDER = ("litellm", "guidellm", "lm_eval", "tenacity")


@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_of_every_run_is_there(name: str) -> None:
    assert find_spec(name) is not None, f"{name} is in the extra dev"


@pytest.mark.clients
@pytest.mark.skipif(
    "COLDPRESS_ALL_CLIENTS" not in os.environ, reason="`make test-clients` says that all are there"
)
@pytest.mark.parametrize("name", OLDER)
def test_a_client_with_older_packages_is_there(name: str) -> None:
    assert find_spec(name) is not None, f"{name} is in tests/clients/requirements.txt"
