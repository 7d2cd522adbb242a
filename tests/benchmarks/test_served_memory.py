"""A server holds its weights, its pool, and not much more."""

import sys
from pathlib import Path

import pytest

from benchmarks.served_memory import MORE_BYTES, measure
from tests.tiny import tiny_checkpoint


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process holds")
def test_what_is_neither_weights_nor_pool_stays_below_the_limit(tmp_path: Path) -> None:
    """The model and its pool are tiny: all that is held is what every server holds."""
    found = measure(tiny_checkpoint(tmp_path / "tiny"), 1_000_000)
    assert found["held"] > 20_000_000, "this is no measurement of a Python process"
    assert found["weights"] < 2_000_000 and found["more"] < MORE_BYTES
