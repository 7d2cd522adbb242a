"""Which requests are in the step that runs just now, readable after the worker's death.

A few numbers in memory that the front shares with its worker. Writing them costs a worker no
system call, and what a process wrote there outlives it, however it ended.
"""

import mmap
import os
import struct
import tempfile
from collections.abc import Sequence

_COUNT = struct.Struct("<Q")


class FlightRecord:
    """Up to `capacity` numbers. The front makes one; the worker opens it by its descriptor."""

    def __init__(self, fd: int, capacity: int) -> None:
        self.fd = fd
        self._capacity = capacity
        self._memory = mmap.mmap(fd, _COUNT.size * (1 + capacity))

    @classmethod
    def create(cls, capacity: int) -> "FlightRecord":
        fd = _anonymous_file()
        os.ftruncate(fd, _COUNT.size * (1 + capacity))
        return cls(fd, capacity)

    def write(self, numbers: Sequence[int]) -> None:
        """A step over these requests begins; those beyond the capacity are left out."""
        count = min(len(numbers), self._capacity)
        # The count last: whoever reads half a record must find it empty.
        self.clear()
        struct.pack_into(f"<{count}Q", self._memory, _COUNT.size, *numbers[:count])
        _COUNT.pack_into(self._memory, 0, count)

    def clear(self) -> None:
        """The step has ended."""
        _COUNT.pack_into(self._memory, 0, 0)

    def read(self) -> tuple[int, ...]:
        """The requests of the step that began and did not end."""
        (count,) = _COUNT.unpack_from(self._memory, 0)
        return struct.unpack_from(f"<{min(count, self._capacity)}Q", self._memory, _COUNT.size)

    def close(self) -> None:
        self._memory.close()
        os.close(self.fd)


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("coldpress-flight")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
