"""The numbers of a step on their way to the device, and its tokens on their way back."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from runtime.engine.batch import Int32

Numbers = npt.NDArray[Any]
BUFFERS = 3
"""A step may be prepared while the copies of the two before it wait behind their work."""
_ALIGNED = 4
"""Numbers of 4 bytes: kernels read 16 bytes at once from whatever begins at such a place."""


class Staging:
    """One copy to the device for all arrays of a step, which the host does not wait for: it writes
    into pinned buffers, taken in turn, and waits only for one whose copy is not done."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pinned = device.type == "cuda"
        self._buffers = [torch.empty(0, dtype=torch.int32) for _ in range(BUFFERS)]
        self._copied: list[torch.cuda.Event | None] = [None] * BUFFERS
        self._turn = 0

    def upload(self, parts: Sequence[Numbers], into: Tensor | None = None) -> list[Tensor]:
        """int32 and float32 arrays, as tensors of the same types and shapes in one piece of memory:
        that of `into`, int32 [laid_out(parts)], where it is given."""
        total = laid_out([part.size for part in parts])
        self._turn = (self._turn + 1) % BUFFERS
        buffer = self._buffer(total)
        flat, starts = buffer.numpy(), []
        place = 0
        for part in parts:
            assert part.itemsize == 4, "int32 and float32 are staged"
            flat[place : place + part.size] = np.ascontiguousarray(part).ravel().view(np.int32)
            starts.append(place)
            place += laid_out([part.size])
        target = into
        if target is None:
            target = torch.empty(total, dtype=torch.int32, device=self._device)
        target.copy_(buffer[:total], non_blocking=self._pinned)
        if self._pinned:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record()
            self._copied[self._turn] = event
        return [_part(target, start, part) for start, part in zip(starts, parts, strict=True)]

    def _buffer(self, size: int) -> Tensor:
        copied, self._copied[self._turn] = self._copied[self._turn], None
        if copied is not None:
            copied.synchronize()
        if len(self._buffers[self._turn]) < size:
            self._buffers[self._turn] = torch.empty(
                size, dtype=torch.int32, pin_memory=self._pinned
            )
        return self._buffers[self._turn]


def laid_out(sizes: Sequence[int]) -> int:
    """Numbers that arrays of these sizes take, one behind the other."""
    return sum(-(-size // _ALIGNED) * _ALIGNED for size in sizes)


def _part(flat: Tensor, start: int, like: Numbers) -> Tensor:
    piece = flat[start : start + like.size].view(like.shape)
    return piece.view(torch.float32) if like.dtype == np.float32 else piece


class InFlight:
    """Implements `runtime.engine.batch.StepInFlight`. chosen: int32 [R] on the device."""

    def __init__(self, chosen: Tensor) -> None:
        self.chosen = chosen
        pinned = chosen.is_cuda
        self._host = torch.empty(len(chosen), dtype=torch.int32, pin_memory=pinned)
        self._copied: torch.cuda.Event | None = None
        if chosen.device.type == "meta":
            return
        self._host.copy_(chosen, non_blocking=pinned)
        if pinned:
            self._copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._copied.record()

    def tokens(self) -> Int32:
        if self._copied is not None:
            self._copied.synchronize()
        return self._host.numpy().copy()
