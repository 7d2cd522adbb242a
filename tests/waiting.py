"""Waiting for what another thread or process does."""

import time
from collections.abc import Callable

PATIENCE_SECONDS = 60.0
"""Far more than anything takes on a machine that does other work."""


def eventually(holds: Callable[[], bool]) -> None:
    """AssertionError if it does not come to hold."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)
