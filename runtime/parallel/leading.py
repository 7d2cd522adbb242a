"""The first rank: it has the scheduler, starts the others and tells them every step."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import IO

import numpy as np
import numpy.typing as npt

from compile.model import Model
from quant.format.errors import ColdpressError, InputError
from runtime.engine.batch import (
    ChoosesTokens,
    Executor,
    GivesHidden,
    Int32,
    PlainDraw,
    StepBatch,
)
from runtime.parallel.part import check_backend, device_of, open_part, part_of
from runtime.parallel.ranks import Kind, Meeting, Ranks
from runtime.part_spec import PartSpec

START_SECONDS = 600.0
"""How long the other processes may take to load."""
_LOOK_SECONDS = 0.1


@dataclass(frozen=True, eq=False)
class Follower:
    """A process of another rank. said: what it writes to stderr."""

    process: "subprocess.Popen[bytes]"
    said: IO[bytes]

    def end(self, *, kill: bool = False) -> None:
        """Waits until the process is gone."""
        if kill:
            self.process.kill()
        self.process.wait()
        self.said.close()

    def reason(self) -> str:
        """Why it has ended, from its last words."""
        self.said.seek(0)
        lines = self.said.read().decode(errors="replace").strip().splitlines()
        if lines:
            return f"could not load its part: {lines[-1]}"
        return f"ended with {self.process.returncode}"


class LeadingExecutor:
    """Implements `runtime.engine.batch.Executor` with all ranks together."""

    def __init__(self, own: Executor, ranks: Ranks, followers: list[Follower]) -> None:
        self._own = own
        self._ranks = ranks
        self._followers = followers
        self.vocab_size, self.max_positions = own.vocab_size, own.max_positions
        self.page_size, self.num_pages = own.page_size, own.num_pages
        self.weight_bytes = int(getattr(own, "weight_bytes", 0))

    def step(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        """Logits, float32 [R, vocab_size]."""
        self._ranks.tell(Kind.STEP, batch)
        return self._own.step(batch)

    def hidden(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        """What logits are made of, float32 [R, hidden_size]."""
        assert isinstance(self._own, GivesHidden)
        self._ranks.tell(Kind.HIDDEN, batch)
        return self._own.hidden(batch)

    def close(self) -> None:
        """Ends the other processes as well."""
        self._ranks.tell(Kind.STOP)
        self._own.close()
        self._ranks.leave()
        for follower in self._followers:
            follower.end()
        self._followers = []


class ChoosingLeader(LeadingExecutor):
    """Where the first rank chooses tokens itself, so that no logits leave its device."""

    def choose(self, batch: StepBatch, draws: Sequence[PlainDraw]) -> Int32:
        """The next token of each logit row, int32 [R]."""
        assert isinstance(self._own, ChoosesTokens)
        self._ranks.tell(Kind.STEP, batch)
        return self._own.choose(batch, draws)


def start_parallel(model: Model, spec: PartSpec, ranks: int) -> LeadingExecutor:
    """Starts `ranks` - 1 processes and loads this one's part, all at once.

    Raises what splitting raises before any process starts; InputError with the reason of a process
    that could not load.
    """
    check_backend(spec.backend)
    part_of(model, 0, ranks)
    own = Ranks(Meeting(0, ranks, port=0), device_of(spec, 0), START_SECONDS)
    followers = [_start(spec, Meeting(rank, ranks, own.port)) for rank in range(1, ranks)]
    try:
        executor = open_part(model, spec, own)
        _wait_until_loaded(own, followers)
        own.join()
    except BaseException:
        for follower in followers:
            follower.end(kill=True)
        raise
    kind = ChoosingLeader if isinstance(executor, ChoosesTokens) else LeadingExecutor
    return kind(executor, own, followers)


def _start(spec: PartSpec, meeting: Meeting) -> Follower:
    told = asdict(spec) | asdict(meeting) | {"path": str(spec.path)}
    command = [sys.executable, "-m", "runtime.parallel", json.dumps(told)]
    said = tempfile.TemporaryFile()  # noqa: SIM115  (open as long as the process)
    return Follower(subprocess.Popen(command, stderr=said), said)


def _wait_until_loaded(ranks: Ranks, followers: list[Follower]) -> None:
    end = time.monotonic() + START_SECONDS
    waiting = dict(enumerate(followers, start=1))
    while waiting:
        for rank, follower in list(waiting.items()):
            if ranks.store.check([loaded_key(rank)]):
                del waiting[rank]
            elif follower.process.poll() is not None:
                raise InputError(f"process {rank} of {ranks.size} {follower.reason()}")
        if time.monotonic() > end:
            raise ColdpressError(f"processes {list(waiting)} did not load in {START_SECONDS:g} s")
        time.sleep(_LOOK_SECONDS if waiting else 0)


def loaded_key(rank: int) -> str:
    """What a process writes when its part is loaded."""
    return f"loaded/{rank}"
