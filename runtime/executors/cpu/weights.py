"""From a WeightSource to packed native matrices, one tensor at a time."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from quant.format.errors import UnsupportedModelError
from quant.format.tensor import QuantizedTensor, Weight, WeightSource
from runtime.kernels.cpu._native import Matrix, ThreadPool

FLOATS = ("float32", "float16", "bfloat16")


@dataclass(frozen=True)
class Packed:
    """column_order: int32 [in], the order in which the matrix wants x's columns; None: as is."""

    matrix: Matrix
    column_order: npt.NDArray[np.int32] | None = None

    @property
    def order_key(self) -> bytes:
        """Equal for matrices that can share a gathered x."""
        return b"" if self.column_order is None else self.column_order.tobytes()


class Weights:
    """Loads and packs; a matrix that two ops name is packed once. Keeps no source array."""

    def __init__(self, source: WeightSource, pool: ThreadPool) -> None:
        self._source = source
        self._pool = pool
        self._packed: dict[str, Packed] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all packed matrices."""
        return sum(packed.matrix.nbytes for packed in self._packed.values())

    def matrix(self, name: str, shape: tuple[int, int]) -> Packed:
        if name not in self._packed:
            self._packed[name] = pack(self._load(name, shape), self._pool)
        return self._packed[name]

    def vector(self, name: str, size: int) -> npt.NDArray[np.float32]:
        """float32 [size]: a norm's weight or a bias."""
        weight = self._load(name, (size,))
        assert not isinstance(weight, QuantizedTensor)
        return np.ascontiguousarray(weight, dtype=np.float32)

    def _load(self, name: str, shape: tuple[int, ...]) -> Weight:
        weight = self._source.load(name)
        if weight.shape != shape:
            raise UnsupportedModelError(
                f"tensor {name} has shape {list(weight.shape)}, but the model's config asks for "
                f"{list(shape)}; use the config.json that belongs to these weights"
            )
        return weight


def pack(weight: Weight, pool: ThreadPool) -> Packed:
    """Copy a weight [out, in] into the native layout; the integers and scales stay as they are."""
    if not isinstance(weight, QuantizedTensor):
        return Packed(Matrix.from_numbers(*_numbers(weight), pool))
    starts, order = group_layout(weight)
    matrix = Matrix.from_integers(
        np.ascontiguousarray(weight.codes),
        weight.scheme.num_bits,
        _numbers(weight.scale),
        None if weight.zero_point is None else np.ascontiguousarray(weight.zero_point),
        None if weight.minimum is None else _numbers(weight.minimum),
        starts,
        order,
        pool,
    )
    return Packed(matrix, order)


def group_layout(
    weight: QuantizedTensor,
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32] | None]:
    """Where each group starts, int32 [groups + 1], once columns are sorted by their group; and
    that sorting, int32 [in], or None where they are sorted already."""
    groups = weight.scale.shape[1]
    of_column = weight.column_groups()
    order = np.argsort(of_column, kind="stable").astype(np.int32)
    starts = np.searchsorted(of_column[order], np.arange(groups + 1)).astype(np.int32)
    identity = np.array_equal(order, np.arange(len(order)))
    return starts, None if identity else order


def _numbers(array: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], str]:
    name = array.dtype.name
    assert name in FLOATS, f"a WeightSource yields {', '.join(FLOATS)}, not {name}"
    array = np.ascontiguousarray(array)
    return (array if name == "float32" else array.view(np.uint16)), name
