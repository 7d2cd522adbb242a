"""Decode steps that are recorded once for each of a few batch sizes and replayed afterwards.

Launching the kernels of a small step from Python takes longer than running them; a CUDA graph is
launched as one. A step of fewer sequences than the graph has is filled up with sequences that write
to page 0, which nobody owns.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from runtime.engine.batch import Follows, Int32, StepBatch
from runtime.executors.cuda.arrays import StepArrays, slots_of, sources_of, splits_for
from runtime.executors.cuda.staging import InFlight, Staging, laid_out
from runtime.kernels.triton.attention import AttentionWork
from runtime.kernels.triton.edits import hand_over

LADDER = (1, 2, 4, 8, 16, 24, 32, 48, 64)
"""Batch sizes that graphs are recorded for; a larger step runs kernel by kernel."""
WARM_UP_RUNS = 2
"""Kernels are compiled and tuned before the recording, which may contain neither."""

Steps = Callable[[StepArrays], Tensor]


class Recorder(Protocol):
    """Records work on fixed memory, to be replayed."""

    def record(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """What replays `work`, and the tensor that holds its result after each replay."""
        ...


class CudaRecorder:
    """Records CUDA graphs, which share one pool of memory: the result of one is read before another
    is replayed."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()
        self._stream: torch.cuda.Stream | None = None

    def record(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        stream = self._stream = self._stream or torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=stream):
            result = work()
        return graph.replay, result


class EagerRecorder:
    """Runs the work again at each replay, into the same result: for where there are no graphs."""

    def record(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        result = work()

        def replay() -> None:
            result.copy_(work())

        return replay, result


@dataclass(frozen=True, eq=False)
class _Recorded:
    memory: Tensor
    arrays: StepArrays
    replay: Callable[[], None]
    logits: Tensor


class DecodeGraphs:
    """Recorded steps by batch size, each made when it is first needed, or all by `record_all`.

    pages: the longest row of a page table.
    """

    def __init__(
        self,
        steps: Steps,
        recorder: Recorder,
        pages: int,
        page_size: int,
        kv_heads: int,
        staging: Staging,
        device: torch.device,
    ) -> None:
        self._steps = steps
        self._recorder = recorder
        self._pages = pages
        self._page_size = page_size
        self._kv_heads = kv_heads
        self._staging = staging
        self._device = device
        self._recorded: dict[int, _Recorded] = {}

    def holds(self, batch: StepBatch) -> bool:
        """Whether a graph is large enough for this step."""
        return len(batch.page_table) <= LADDER[-1]

    def record_all(self) -> None:
        """Every size; the largest first, whose memory the others take."""
        for size in reversed(LADDER):
            self._of(size)

    def run(self, batch: StepBatch, follows: Follows | None) -> Tensor:
        """float32 [R, vocab_size] on the device, overwritten by the next run."""
        sequences = len(batch.page_table)
        size = next(size for size in LADDER if size >= sequences)
        recorded = self._of(size)
        table = np.zeros((size, self._pages), np.int32)
        table[:sequences, : batch.page_table.shape[1]] = batch.page_table
        # Idle sequences see one token of page 0.
        parts = [batch.token_ids, batch.positions, slots_of(batch, self._page_size)]
        self._staging.upload(
            [*(_filled(part, size, 0) for part in parts),
             _filled(sources_of(batch, follows), size, -1), table],
            into=recorded.memory,
        )  # fmt: skip
        if follows is not None:
            assert isinstance(follows.step, InFlight)
            arrays = recorded.arrays
            hand_over(follows.step.chosen, arrays.sources, arrays.token_ids)
        recorded.replay()
        return recorded.logits[:sequences]

    def _of(self, size: int) -> _Recorded:
        if size not in self._recorded:
            self._recorded[size] = self._record(size)
        return self._recorded[size]

    def _record(self, size: int) -> _Recorded:
        memory, arrays = self._blank(size)
        replay, logits = self._recorder.record(lambda: self._steps(arrays))
        return _Recorded(memory, arrays, replay, logits)

    def _blank(self, size: int) -> tuple[Tensor, StepArrays]:
        """`size` idle sequences, and the one piece of memory that their arrays lie in."""
        blank = np.zeros(size, np.int32)
        parts = [blank, blank, blank, blank - 1, np.zeros((size, self._pages), np.int32)]
        total = laid_out([part.size for part in parts])
        memory = torch.empty(total, dtype=torch.int32, device=self._device)
        token_ids, positions, slots, sources, table = self._staging.upload(parts, into=memory)
        every = torch.arange(size + 1, dtype=torch.int32, device=self._device)
        work = AttentionWork(
            positions,
            every,
            table,
            every[:size].clone(),
            torch.zeros(size, dtype=torch.int32, device=self._device),
            tokens_per_block=1,
            splits=splits_for(size, self._kv_heads),
        )
        rows = every[:size].clone()
        return memory, StepArrays(token_ids, positions, slots, sources, rows, work)


def is_decode(batch: StepBatch) -> bool:
    """Every sequence has one token, whose logits are wanted."""
    sequences = len(batch.page_table)
    return len(batch.token_ids) == sequences == len(batch.logit_rows)


def _filled(numbers: Int32, size: int, rest: int) -> Int32:
    found = np.full(size, rest, np.int32)
    found[: len(numbers)] = numbers
    return found
