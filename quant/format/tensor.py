"""The canonical form of a weight, which every container is read into and written from."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from quant.format.scheme import IntScheme, Scheme

FloatArray = npt.NDArray[Any]
"""float32, float16 or ml_dtypes.bfloat16; numpy's typing does not know the last one."""


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """Integer codes of one linear's weight, with everything needed to read them.

    codes: int8 [out, in], within [scheme.qmin, scheme.qmax]; with `minimum`, in [0, 2**num_bits).
    scale: float16, bfloat16 or float32 [out, groups], exactly as stored.
    zero_point: int8 [out, groups], asymmetric schemes only: w = (code - zero_point) * scale.
    minimum: float [out, groups], GGUF's `_1` types only: w = code * scale + minimum.
    group_index: int32 [in], the group of each column, only where it is not column // group_size.
    """

    scheme: IntScheme
    codes: npt.NDArray[np.int8]
    scale: FloatArray
    zero_point: npt.NDArray[np.int8] | None = None
    minimum: FloatArray | None = None
    group_index: npt.NDArray[np.int32] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.codes.shape
        return rows, columns

    def column_groups(self) -> npt.NDArray[np.int32]:
        """int32 [in]: the group of each input column."""
        if self.group_index is not None:
            return self.group_index
        columns = self.shape[1]
        size = self.scheme.group_size(columns)
        return (np.arange(columns, dtype=np.int32) // size).astype(np.int32)

    def dequantize(self) -> npt.NDArray[np.float32]:
        """float32 [out, in]. Exact: every product of a code and a 16-bit scale fits float32."""
        group = self.column_groups()
        values = self.codes.astype(np.float32)
        if self.zero_point is not None:
            values -= self.zero_point.astype(np.float32)[:, group]
        values *= self.scale.astype(np.float32)[:, group]
        if self.minimum is not None:
            values += self.minimum.astype(np.float32)[:, group]
        return values

    def take_rows(self, rows: npt.NDArray[np.intp]) -> "QuantizedTensor":
        """The same weight with its output rows picked in the order `rows`."""
        return QuantizedTensor(
            self.scheme,
            np.ascontiguousarray(self.codes[rows]),
            self.scale[rows],
            None if self.zero_point is None else self.zero_point[rows],
            None if self.minimum is None else self.minimum[rows],
            self.group_index,
        )

    def digest(self) -> str:
        """sha256 of the integers alone (codes and zero points): equal in every container."""
        sha = hashlib.sha256(np.ascontiguousarray(self.codes).tobytes())
        if self.zero_point is not None:
            sha.update(np.ascontiguousarray(self.zero_point).tobytes())
        return sha.hexdigest()


Weight = FloatArray | QuantizedTensor


class WeightSource(Protocol):
    """Weights by canonical Hugging Face name, e.g. `model.layers.0.mlp.up_proj.weight`.

    A quantized weight appears once, under the name that its float original had. Names, shapes and
    schemes come from headers; only `load` reads data, and it never keeps what it returns.
    """

    def names(self) -> Collection[str]:
        """Every logical tensor in the source."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """Logical shape: [out, in] for a linear, however it is packed."""
        ...

    def scheme(self, name: str) -> Scheme:
        """How the numbers of this tensor are stored."""
        ...

    def load(self, name: str) -> Weight:
        """Read one tensor. Raises FileFormatError naming the tensor when it is malformed."""
        ...
