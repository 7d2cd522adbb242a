"""Memory on the device: pages, and buffers that grow with the steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from runtime.executors.tensorrt.interface import Address, Device

ALIGNMENT = 256
"""Bytes that the address of every input and output is a multiple of."""
HALF_BYTES = 2
Int64 = npt.NDArray[np.int64]


class Buffer:
    """Memory for one step at a time; what was in it is lost when it grows."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._address: Address = 0
        self._nbytes = 0

    def at_least(self, nbytes: int) -> Address:
        if nbytes > self._nbytes:
            self.close()
            # A larger step is seldom the last one that is larger than before.
            wanted = max(nbytes, ALIGNMENT, self._nbytes * 3 // 2)
            self._address, self._nbytes = self._device.allocate(wanted), wanted
        return self._address

    def close(self) -> None:
        if self._address:
            # Work that was enqueued may still use it.
            self._device.wait()
            self._device.free(self._address)
            self._address = 0


def places(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Aligned offsets of pieces of so many bytes, one after the other; their end."""
    offsets, end = [], 0
    for size in sizes:
        offsets.append(end)
        end += -(-size // ALIGNMENT) * ALIGNMENT
    return offsets, end


@dataclass(frozen=True)
class Pool:
    """float16 [num_pages, page_size, kv_heads, head_dim] of one layer's keys or values."""

    address: Address
    shape: tuple[int, int, int, int]

    @property
    def row_bytes(self) -> int:
        return HALF_BYTES * self.shape[2] * self.shape[3]


def make_pools(
    device: Device, rows: Mapping[str, tuple[int, int]], num_pages: int, page_size: int
) -> dict[str, Pool]:
    """Pools full of zeros; rows: (kv_heads, head_dim) by name."""
    pools = {}
    for name, row in rows.items():
        shape = (num_pages, page_size, *row)
        nbytes = HALF_BYTES * int(np.prod(shape, dtype=np.int64))
        pools[name] = Pool(device.allocate(nbytes), shape)
        device.zero(pools[name].address, nbytes)
    return pools


def runs_of(slots: Int64) -> list[tuple[int, int, int]]:
    """(first slot, first row, count) of each run of rows whose slots follow one another."""
    breaks = np.flatnonzero(np.diff(slots) != 1) + 1
    starts = np.concatenate([[0], breaks]).astype(np.int64)
    counts = np.diff(np.append(starts, len(slots)))
    return list(zip(slots[starts].tolist(), starts.tolist(), counts.tolist(), strict=True))
