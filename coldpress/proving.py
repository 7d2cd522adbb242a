"""Verification with logits: `compile` may not import the runtime, so it is handed an executor."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate, cycle, pairwise, takewhile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from coldpress.loading import AUTO, DEFAULT_MACHINE, Machine, open_executor
from quant.format.errors import UnsupportedModelError

if TYPE_CHECKING:
    from compile.model import Model
    from compile.verify import VerifyReport


CHUNKS = (11, 1, 1, 8)
"""Tokens of the steps in which a prompt is run, over and over."""


def verify(
    artifact: Path,
    *,
    against: Path | None = None,
    logits: bool = True,
    machine: Machine = DEFAULT_MACHINE,
    on_progress: Callable[[int, int, str], None] | None = None,
) -> "VerifyReport":
    """Digests; with `against`, every integer and, if `logits`, the logits of a fixed prompt."""
    from compile.verify import verify as check

    def logits_of(model: "Model", tokens: Sequence[int]) -> npt.NDArray[np.float32]:
        from runtime.evaluation.protocol import chunk_batch

        chosen = replace(machine, backend=_backend(model, machine), exact=True)
        executor = open_executor(model, chosen, tokens=len(tokens))
        try:
            ids = np.asarray(tokens, np.int32)
            steps = [chunk_batch(executor, ids, *span) for span in spans(len(ids))]
            return np.concatenate([executor.step(step).copy() for step in steps])
        finally:
            executor.close()

    return check(artifact, against, logits_of if logits else None, on_progress)


def spans(count: int) -> list[tuple[int, int]]:
    """How a prompt of `count` tokens is cut: chunks and single tokens, as a server's steps are, so
    that what is read back from the pages is compared too."""
    ends = list(takewhile(lambda end: end < count, accumulate(cycle(CHUNKS))))
    return list(pairwise([0, *ends, count]))


def _backend(model: "Model", machine: Machine) -> str:
    """The asked one; by default the model's own, or torch for what the cpu backend cannot run."""
    from runtime.executors.cpu import check_supported
    from runtime.loading import resolve_backend

    backend = resolve_backend(model, machine.backend)
    if backend == "cpu" and machine.backend == AUTO:
        try:
            check_supported(model.program)
        except UnsupportedModelError:
            return "torch"
    return backend
