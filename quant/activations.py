"""Activations that are carried from layer to layer: in memory, or in a file when they are many."""

import math
import mmap
import os
import tempfile
from pathlib import Path

import torch

from quant.format.staging import disk_errors


def empty_activations(
    shape: tuple[int, ...], dtype: torch.dtype, directory: Path | None
) -> torch.Tensor:
    """A tensor to be filled; its numbers lie in a file in `directory`, if that is given.

    The file has no name, so that nothing is left of it whatever ends the process. Raises InputError
    when the disk has no room.
    """
    if directory is None:
        return torch.empty(shape, dtype=dtype)
    size = math.prod(shape) * dtype.itemsize
    directory.mkdir(parents=True, exist_ok=True)
    with disk_errors(directory), tempfile.TemporaryFile(dir=directory) as file:
        # Room is taken at once: a write through a map that finds the disk full kills the process.
        os.posix_fallocate(file.fileno(), 0, size)
        mapped = mmap.mmap(file.fileno(), size)
    return torch.frombuffer(mapped, dtype=dtype).reshape(shape)
