"""`python -m tests.runtime.worker.fake_worker SOCKET RECORD`: a real worker on a false executor.

What a prompt holds, or the name of the model, decides what becomes of the process.
"""

import mmap
import os
import signal
import sys
import time
from functools import partial
from pathlib import Path

from quant.format.errors import FileFormatError
from runtime.engine.batch import StepBatch
from runtime.worker.main import run
from runtime.worker.opening import Opened
from runtime.worker.spec import ModelSpec
from tests.runtime.engine.fake_executor import FakeExecutor

KILL, STOP, RAISE = 20, 21, 22
"""A token that ends the process, one that stops it, one that fails the step."""


class FaultyExecutor(FakeExecutor):
    weight_bytes = 0


def act(slow: bool, batch: StepBatch) -> None:
    """On the first token of a prompt; an answer may hold any token."""
    fresh = batch.token_ids[batch.positions == 0]
    if KILL in fresh:
        os.kill(os.getpid(), signal.SIGKILL)
    if STOP in fresh:
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(60)  # the signal reaches some thread or other, and this one only then
    if RAISE in fresh:
        raise RuntimeError("the plates are jammed")
    if slow:
        time.sleep(0.02)


def read_while_it_shrinks(path: Path) -> None:
    """What becomes of a mapped file that somebody cuts short."""
    path.write_bytes(bytes(8 * mmap.PAGESIZE))
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    os.truncate(path, mmap.PAGESIZE)
    print(data[4 * mmap.PAGESIZE])


def open_fake(spec: ModelSpec) -> Opened:
    """The model's name says how loading ends; a file at its path, that there is no second time."""
    if spec.name == "broken":
        raise FileFormatError(spec.path, "is broken")
    if spec.name == "missing":
        raise FileNotFoundError(2, "No such file or directory", str(spec.path))
    if spec.name == "bug":
        raise ZeroDivisionError("division by zero")
    if spec.name == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if spec.name == "bus":
        read_while_it_shrinks(spec.path)
    if spec.name == "once":
        if spec.path.exists():
            raise FileFormatError(spec.path, "is there already")
        spec.path.touch()
    executor = FaultyExecutor(num_pages=256)
    if spec.name == "http":
        executor = FaultyExecutor(num_pages=1024, vocab_size=384, max_positions=500)
    executor.before_step = partial(act, spec.name in ("slow", "http"))
    return Opened(executor)


def command() -> tuple[str, ...]:
    root = str(Path(__file__).parents[3])
    program = f"import sys; sys.path.insert(0, {root!r}); "
    program += "from tests.runtime.worker.fake_worker import main; main()"
    return (sys.executable, "-c", program)


def main() -> None:
    run(int(sys.argv[1]), int(sys.argv[2]), open_fake)
