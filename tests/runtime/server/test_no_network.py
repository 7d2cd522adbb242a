"""W1, as the kernel sees it: a server that is asked for images looks nothing up and connects to
nothing, in native code neither."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.runtime.server.cut_off import NOT_PERMITTED

ROOT = Path(__file__).parents[3]
KINDS = ("namespace", "filter")


def run(kind: str, deed: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tests.runtime.server.cut_off", kind, deed]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode == NOT_PERMITTED:
        pytest.skip(f"this system lets nobody without privileges have a {kind} of their own")
    return done


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_refused_without_a_packet(kind: str) -> None:
    done = run(kind, "refuse")
    assert done.returncode == 0, done.stderr
    if kind == "namespace":
        # Elsewhere others send as well; there the kernel would have ended the server.
        assert set(json.loads(done.stdout).values()) == {0}


@pytest.mark.parametrize("deed", ["connect", "look-up"])
def test_the_namespace_counts_what_is_tried(deed: str) -> None:
    """Else the test above could not fail."""
    done = run("namespace", deed)
    assert done.returncode == 0, done.stderr
    assert sum(json.loads(done.stdout).values()) > 0


@pytest.mark.parametrize("deed", ["connect", "look-up"])
def test_the_filter_ends_what_tries(deed: str) -> None:
    assert run("filter", deed).returncode == -signal.SIGSYS
