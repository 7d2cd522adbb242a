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

from runtime.engine.batch import StepBatch
from runtime.executors.cuda.arrays import Int32, StepArrays, slots_of, splits_for
from runtime.kernels.triton.attention import AttentionWork

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
    """Records CUDA graphs, which share one pool of memory."""

    def __init__(self) -> None:
        self._pool = torch.cuda.graph_pool_handle()

    def record(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_RUNS):
                work()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
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
    arrays: StepArrays
    replay: Callable[[], None]
    logits: Tensor


class DecodeGraphs:
    """Recorded steps by batch size, each made when it is first needed.

    pages: the longest row of a page table.
    """

    def __init__(
        self,
        steps: Steps,
        recorder: Recorder,
        pages: int,
        page_size: int,
        kv_heads: int,
        device: torch.device,
    ) -> None:
        self._steps = steps
        self._recorder = recorder
        self._pages = pages
        self._page_size = page_size
        self._kv_heads = kv_heads
        self._device = device
        self._recorded: dict[int, _Recorded] = {}

    def holds(self, batch: StepBatch) -> bool:
        """Whether a graph is large enough for this step."""
        return len(batch.page_table) <= LADDER[-1]

    def run(self, batch: StepBatch) -> Tensor:
        """float32 [R, vocab_size] on the device, overwritten by the next run."""
        sequences = len(batch.page_table)
        size = next(size for size in LADDER if size >= sequences)
        if size not in self._recorded:
            self._recorded[size] = self._record(size)
        recorded = self._recorded[size]
        arrays = recorded.arrays
        _fill(arrays.token_ids, batch.token_ids)
        _fill(arrays.positions, batch.positions)
        _fill(arrays.slots, slots_of(batch, self._page_size))
        table = np.zeros((size, self._pages), np.int32)
        table[:sequences, : batch.page_table.shape[1]] = batch.page_table
        arrays.work.page_table.copy_(torch.from_numpy(table), non_blocking=True)
        recorded.replay()
        return recorded.logits[:sequences]

    def _record(self, size: int) -> _Recorded:
        arrays = self._blank(size)
        replay, logits = self._recorder.record(lambda: self._steps(arrays))
        return _Recorded(arrays, replay, logits)

    def _blank(self, size: int) -> StepArrays:
        """`size` sequences that see one token of page 0."""

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(shape, dtype=torch.int32, device=self._device)

        every = torch.arange(size + 1, dtype=torch.int32, device=self._device)
        positions = zeros(size)
        work = AttentionWork(
            positions,
            every,
            zeros(size, self._pages),
            every[:size].clone(),
            zeros(size),
            tokens_per_block=1,
            splits=splits_for(size, self._kv_heads),
        )
        rows = torch.arange(size, device=self._device)
        return StepArrays(zeros(size), positions, zeros(size), rows, work)


def is_decode(batch: StepBatch) -> bool:
    """Every sequence has one token, whose logits are wanted."""
    sequences = len(batch.page_table)
    return len(batch.token_ids) == sequences == len(batch.logit_rows)


def _fill(target: Tensor, numbers: Int32) -> None:
    """The first places of `target`; the others become 0."""
    padded = np.zeros(len(target), np.int32)
    padded[: len(numbers)] = numbers
    target.copy_(torch.from_numpy(padded), non_blocking=True)
