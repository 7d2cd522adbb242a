"""The first rank: it has the scheduler, starts the others and tells them every step."""

import json
import subprocess
import sys
import time
from dataclasses import asdict

import numpy as np
import numpy.typing as npt

from compile.model import Model
from quant.format.errors import ColdpressError, InputError
from runtime.engine.batch import Executor, GivesHidden, StepBatch
from runtime.parallel.part import PartSpec, open_part, part_of
from runtime.parallel.ranks import HIDDEN, STEP, STOP, Meeting, Ranks

START_SECONDS = 600.0
"""How long the other processes may take to load."""
_LOOK_SECONDS = 0.1


class LeadingExecutor:
    """Implements `runtime.engine.batch.Executor` with all ranks together."""

    def __init__(
        self, own: Executor, ranks: Ranks, followers: "list[subprocess.Popen[str]]"
    ) -> None:
        self._own = own
        self._ranks = ranks
        self._followers = followers
        self.vocab_size, self.max_positions = own.vocab_size, own.max_positions
        self.page_size, self.num_pages = own.page_size, own.num_pages
        self.weight_bytes = int(getattr(own, "weight_bytes", 0))

    def step(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        """Logits, float32 [R, vocab_size]."""
        self._ranks.tell(STEP, batch)
        return self._own.step(batch)

    def hidden(self, batch: StepBatch) -> npt.NDArray[np.float32]:
        """What logits are made of, float32 [R, hidden_size]."""
        assert isinstance(self._own, GivesHidden)
        self._ranks.tell(HIDDEN, batch)
        return self._own.hidden(batch)

    def close(self) -> None:
        """Ends the other processes as well."""
        self._ranks.tell(STOP)
        self._own.close()
        self._ranks.leave()
        for follower in self._followers:
            follower.wait()
        self._followers = []


def start_parallel(model: Model, spec: PartSpec, ranks: int) -> LeadingExecutor:
    """Starts `ranks` - 1 processes and loads this one's part, all at once.

    Raises what splitting raises before any process starts; InputError with the reason of a process
    that could not load.
    """
    part_of(model, 0, ranks)
    own = Ranks(Meeting(0, ranks, port=0), spec.device(0), START_SECONDS)
    followers = [_start(spec, Meeting(rank, ranks, own.port)) for rank in range(1, ranks)]
    try:
        executor = open_part(model, spec, own)
        _wait_until_loaded(own, followers)
        own.join()
    except BaseException:
        for follower in followers:
            follower.kill()
            follower.wait()
        raise
    return LeadingExecutor(executor, own, followers)


def _start(spec: PartSpec, meeting: Meeting) -> "subprocess.Popen[str]":
    told = asdict(spec) | asdict(meeting) | {"path": str(spec.path)}
    command = [sys.executable, "-m", "runtime.parallel", json.dumps(told)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def _wait_until_loaded(ranks: Ranks, followers: "list[subprocess.Popen[str]]") -> None:
    end = time.monotonic() + START_SECONDS
    waiting = dict(enumerate(followers, start=1))
    while waiting:
        for rank, follower in list(waiting.items()):
            if ranks.store.check([loaded_key(rank)]):
                del waiting[rank]
            elif follower.poll() is not None:
                raise InputError(f"process {rank} of {ranks.size} {_reason(follower)}")
        if time.monotonic() > end:
            raise ColdpressError(f"processes {list(waiting)} did not load in {START_SECONDS:g} s")
        time.sleep(_LOOK_SECONDS if waiting else 0)


def _reason(follower: "subprocess.Popen[str]") -> str:
    said = follower.stderr.read().strip().splitlines() if follower.stderr else []
    return f"could not load its part: {said[-1]}" if said else f"ended with {follower.returncode}"


def loaded_key(rank: int) -> str:
    """What a process writes when its part is loaded."""
    return f"loaded/{rank}"
