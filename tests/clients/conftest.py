from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.runtime.server.harness import Running, ScriptedExecutor, running
from tests.tiny import tiny_checkpoint


@pytest.fixture(scope="package")
def server() -> Iterator[Running]:
    """One server for every client; its model writes a known text, and 2,048 tokens fit."""
    with running(ScriptedExecutor(num_pages=1024, max_positions=2048)) as one:
        yield one


@pytest.fixture(scope="package")
def http(server: Running) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.url, timeout=30) as one:
        yield one


@pytest.fixture(scope="package")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A float checkpoint."""
    return tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "model")
