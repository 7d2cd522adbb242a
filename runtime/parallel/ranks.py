"""The processes that share a model: their sums, and the steps that the first one tells the others.

Over torch.distributed: sums go through NCCL between GPUs, gloo between CPUs; only numbers are sent.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, distributed
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from runtime.engine.batch import StepBatch

HOST = "127.0.0.1"
IDLE = timedelta(days=365)
"""How long a rank may wait to be told of a step: a server that nobody asks anything is fine."""
_ARRAYS = ("token_ids", "positions", "query_starts", "page_table", "logit_rows")
Numbers = npt.NDArray[Any]
_HEADER = 2 + len(_ARRAYS)


class Kind(IntEnum):
    """What the first rank is about to do."""

    STEP = 0
    HIDDEN = 1
    STOP = 2


@dataclass(frozen=True)
class Meeting:
    """Where the processes find each other. rank: of this one; 0 leads. port: on this machine."""

    rank: int
    ranks: int
    port: int


class Ranks:
    """This process among the others. device: where tensors to be summed lie."""

    def __init__(self, meeting: Meeting, device: torch.device, timeout_seconds: float) -> None:
        self.rank, self.size = meeting.rank, meeting.ranks
        self._device = device
        self.store = TCPStore(
            HOST,
            meeting.port,
            is_master=meeting.rank == 0,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout_seconds),
        )
        self.port = self.store.port
        self._told: distributed.ProcessGroup | None = None

    def join(self) -> None:
        """Returns once every process has come; RuntimeError where one does not come in time."""
        backend = "nccl" if self._device.type == "cuda" else "gloo"
        distributed.init_process_group(
            backend, store=self.store, rank=self.rank, world_size=self.size
        )
        # What ranks are told goes from processor to processor; sums that hang still end in time.
        self._told = distributed.new_group(backend="gloo", timeout=IDLE)

    def sum(self, x: Tensor) -> Tensor:
        """The sum over all ranks, of x's shape and dtype; the same bits on each of them."""
        total = x.contiguous()
        distributed.all_reduce(total)
        return total

    def max(self, x: Tensor) -> Tensor:
        """The largest of each number over all ranks, of x's shape and dtype."""
        largest = x.contiguous()
        distributed.all_reduce(largest, distributed.ReduceOp.MAX)
        return largest

    def tell(self, kind: Kind, batch: StepBatch | None = None) -> None:
        """What the first rank is about to do, to all others."""
        arrays: Sequence[Numbers] = (
            [] if batch is None else [getattr(batch, name) for name in _ARRAYS]
        )
        width = 0 if batch is None else batch.page_table.shape[1]
        sizes = [array.size for array in arrays] or [0] * len(_ARRAYS)
        self._send(np.array([kind, width, *sizes], np.int64))
        if batch is not None:
            self._send(np.concatenate([array.ravel() for array in arrays]).astype(np.int32))

    def hear(self) -> tuple[Kind, StepBatch | None]:
        """What the first rank is about to do; waits for it."""
        header = self._receive(np.zeros(_HEADER, np.int64)).tolist()
        kind, width, sizes = Kind(header[0]), header[1], header[2:]
        if kind is Kind.STOP:
            return kind, None
        flat = self._receive(np.zeros(sum(sizes), np.int32))
        parts = dict(zip(_ARRAYS, np.split(flat, np.cumsum(sizes)[:-1]), strict=True))
        parts["page_table"] = parts["page_table"].reshape(-1, width)
        return kind, StepBatch(**parts)

    def leave(self) -> None:
        distributed.destroy_process_group()

    def _send(self, numbers: Numbers) -> None:
        distributed.broadcast(torch.from_numpy(numbers), src=0, group=self._told)

    def _receive(self, numbers: Numbers) -> Numbers:
        distributed.broadcast(torch.from_numpy(numbers), src=0, group=self._told)
        return numbers
