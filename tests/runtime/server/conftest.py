from collections.abc import Iterator

import httpx
import pytest
from openai import OpenAI

from tests.runtime.server.harness import Running, ScriptedExecutor, running
from tests.runtime.server.stage import Stage, staged


@pytest.fixture(scope="package")
def server() -> Iterator[Running]:
    """One server for every test that leaves it as it was."""
    with running(ScriptedExecutor()) as one:
        yield one


@pytest.fixture(scope="package")
def client(server: Running) -> Iterator[OpenAI]:
    with server.client() as one:
        yield one


@pytest.fixture(scope="package")
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=60) as one:
        yield one


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """A server whose model says what the test tells it."""
    with staged() as one:
        yield one
