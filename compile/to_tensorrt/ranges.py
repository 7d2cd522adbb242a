"""Do the stored numbers fit float16, the type that an engine multiplies in?"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from compile.onnx_contract import SCALE_SUFFIX
from compile.onnx_proto import ExternalTensor, Graph
from quant.format.errors import UnsupportedModelError

TYPES: dict[str, Any] = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16}
CHUNK = 1 << 22
LARGEST = float(np.finfo(np.float16).max)
HELD = 2.0**-10
"""Relative error of a scale that is held: float16 rounds to half of it, but for tiny numbers."""


def check_range(directory: Path, graph: Graph) -> tuple[str, ...]:
    """Sentences about what float16 holds only roughly; reads the weights once, in pieces.

    Raises UnsupportedModelError naming a tensor with a number that float16 does not hold at all.
    """
    rough, scales, worst = 0, 0, 0.0
    for tensor in graph.tensors:
        if not _becomes_half(tensor):
            continue
        for values in _pieces(directory, tensor):
            if np.abs(values).max(initial=0) > LARGEST:
                raise UnsupportedModelError(
                    f"tensor {tensor.name} has numbers above {LARGEST:.0f}, the largest of the "
                    "float16 that TensorRT multiplies in; use --target onnx"
                )
            if tensor.name.endswith(SCALE_SUFFIX):
                errors = _relative_errors(values)
                scales, rough = scales + errors.size, rough + int((errors > HELD).sum())
                worst = max(worst, float(errors.max(initial=0)))
    if rough == 0:
        return ()
    return (
        f"{rough} of {scales} scales are too small for float16 to hold in full; the worst is off "
        f"by {100 * worst:.2g} %",
    )


def _becomes_half(tensor: ExternalTensor) -> bool:
    matrix = tensor.name.endswith((".weight", ".bias"))
    return tensor.dtype in TYPES and (matrix or tensor.name.endswith(SCALE_SUFFIX))


def _pieces(directory: Path, tensor: ExternalTensor) -> Iterator[npt.NDArray[np.float32]]:
    dtype = np.dtype(TYPES[tensor.dtype])
    count = tensor.nbytes // dtype.itemsize
    for start in range(0, count, CHUNK):
        offset = tensor.offset + start * dtype.itemsize
        wanted = min(CHUNK, count - start) * dtype.itemsize
        raw = np.fromfile(directory / tensor.location, np.uint8, wanted, offset=offset)
        yield raw.view(dtype).astype(np.float32)


def _relative_errors(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Of float16, for each number but zeros."""
    values = values[values != 0]
    held = values.astype(np.float16).astype(np.float32)
    errors: npt.NDArray[np.float32] = np.abs(held - values) / np.abs(values)
    return errors
