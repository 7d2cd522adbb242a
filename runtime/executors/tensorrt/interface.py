"""What the executor asks of a GPU and of TensorRT; tests answer for both on the CPU."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

Address = int
"""Of memory on the device."""


class Device(Protocol):
    """One GPU and one stream on it, in which everything happens in order."""

    @property
    def card(self) -> str:
        """Compute capability, such as "sm89"."""
        ...

    @property
    def stream(self) -> int: ...

    def enter(self) -> None:
        """Make the device the one of the calling thread."""
        ...

    def free_bytes(self) -> int: ...

    def allocate(self, nbytes: int) -> Address:
        """Aligned to 256 bytes at least. Raises InputError when there is no memory left."""
        ...

    def free(self, address: Address) -> None: ...
    def zero(self, address: Address, nbytes: int) -> None: ...

    def upload(self, address: Address, array: npt.NDArray[Any]) -> None:
        """The array may be changed only after `wait`."""
        ...

    def download(self, array: npt.NDArray[Any], address: Address) -> None:
        """The array is whole after `wait`."""
        ...

    def copy(self, to: Address, source: Address, nbytes: int) -> None: ...
    def wait(self) -> None: ...
    def close(self) -> None: ...


class EngineContext(Protocol):
    """A loaded engine."""

    def run(
        self,
        shapes: Mapping[str, tuple[int, ...]],
        addresses: Mapping[str, Address],
        stream: int,
        scratch: Callable[[int], Address],
    ) -> None:
        """Enqueue one step. shapes: of every input. addresses: of every input and output. scratch:
        is asked for working memory of so many bytes. Raises ColdpressError."""
        ...


class Platform(Protocol):
    """The installed TensorRT and its GPU."""

    @property
    def version(self) -> str: ...

    @property
    def device(self) -> Device: ...

    def load(self, engine: Path) -> EngineContext:
        """Raises FileFormatError for what TensorRT does not take for an engine."""
        ...
