"""What every on-disk format of quantized weights offers, and the checks that they share.

A codec reads the headers once (`find`), and then decodes one weight at a time (`decode`). It knows
modules by name without `.weight`, e.g. `model.layers.0.mlp.up_proj`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from quant.format.errors import FileFormatError, UnsupportedModelError
from quant.format.scheme import QuantizedScheme
from quant.format.stored import FileBytes, StoredIntegers
from quant.format.tensor import QuantizedTensor

LoadRaw = Callable[[str], npt.NDArray[Any]]
Locate = Callable[[str], FileBytes | None]
"""Where a stored matrix lies; None where that is nowhere in a file."""
FLOAT_DTYPES = ("float16", "bfloat16", "float32")


class Stored(Protocol):
    """The part of a header entry that a codec looks at."""

    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


Headers = Mapping[str, Stored]


@dataclass(frozen=True)
class PackedWeight:
    """One quantized weight as its headers describe it.

    shape: logical [out, in]. parts: the stored tensors by suffix, e.g. {"qweight": "a.b.qweight"}.
    """

    module: str
    shape: tuple[int, int]
    scheme: QuantizedScheme
    parts: Mapping[str, str]


class WeightCodec(Protocol):
    """Reads one on-disk format."""

    suffixes: frozenset[str]
    """Last parts of the names of stored tensors that belong to quantized weights only."""

    def find(self, headers: Headers, load: LoadRaw) -> list[PackedWeight]:
        """Every quantized weight; `load` is called for a few bytes at most.

        Raises FileFormatError or UnsupportedModelError naming the weight.
        """
        ...

    def decode(self, weight: PackedWeight, load: LoadRaw) -> QuantizedTensor:
        """The weight in canonical form. Raises FileFormatError when its numbers make no sense."""
        ...


@runtime_checkable
class StoresIntegers(Protocol):
    """What a codec has besides, where codes can be read as they lie."""

    def stored(self, weight: PackedWeight, load: LoadRaw, locate: Locate) -> StoredIntegers | None:
        """The numbers of `decode`, with the codes left where they are; None for what has to be
        decoded. Raises as `decode` does."""
        ...


@dataclass(frozen=True)
class Fault:
    """Makes errors that name the checkpoint and the weight."""

    where: str
    module: str

    def malformed(self, problem: str) -> FileFormatError:
        return FileFormatError(self.where, f"weight '{self.module}': {problem}")

    def unsupported(self, problem: str) -> UnsupportedModelError:
        return UnsupportedModelError(f"{self.where}: weight '{self.module}': {problem}")


def parts_of(module: str, headers: Headers, suffixes: tuple[str, ...]) -> dict[str, str]:
    """Names of the stored tensors of `module`, by suffix; those that exist."""
    named = {suffix: f"{module}.{suffix}" for suffix in suffixes}
    return {suffix: name for suffix, name in named.items() if name in headers}


def require_part(
    headers: Headers, parts: Mapping[str, str], suffix: str, dtypes: tuple[str, ...], fault: Fault
) -> tuple[int, ...]:
    """Shape of the stored tensor `suffix`, which must exist in one of `dtypes`."""
    if suffix not in parts:
        raise fault.malformed(f"the tensor '{fault.module}.{suffix}' is missing")
    stored = headers[parts[suffix]]
    if stored.dtype.name not in dtypes:
        raise fault.malformed(
            f"'{suffix}' has dtype {stored.dtype.name} instead of {' or '.join(dtypes)}"
        )
    return stored.shape


def require_shape(
    actual: tuple[int, ...], expected: tuple[int, ...], suffix: str, fault: Fault
) -> None:
    if actual != expected:
        raise fault.malformed(
            f"'{suffix}' has shape {list(actual)} where {list(expected)} is needed"
        )


def require_scalar(actual: tuple[int, ...], suffix: str, fault: Fault) -> None:
    """One number: as a scalar, a vector of one or a matrix of one."""
    if actual not in ((), (1, 1)):
        require_shape(actual, (1,), suffix, fault)


def require_usable_scale(scale: npt.NDArray[Any], fault: Fault) -> None:
    """Every scale is finite; a scale of 0 is a weight of zeros, which old writers made."""
    if not np.isfinite(scale.astype(np.float32)).all():
        raise fault.malformed("a scale is NaN or infinite")


def as_codes(codes: npt.NDArray[np.uint8], num_bits: int) -> npt.NDArray[np.int8]:
    """Unsigned codes as the signed ones that are worth the same."""
    return (codes - np.uint8(1 << (num_bits - 1))).view(np.int8)


def as_unsigned(codes: npt.NDArray[np.int8], num_bits: int) -> npt.NDArray[np.uint8]:
    """Inverse of `as_codes`."""
    return codes.view(np.uint8) + np.uint8(1 << (num_bits - 1))


def group_index_or_none(
    index: npt.NDArray[Any], scheme: QuantizedScheme, fault: Fault
) -> npt.NDArray[np.int32] | None:
    """The stored group of each column, or None when it is the plain `column // group_size`.

    No group may hold more columns than its size: an index that says so is corrupt.
    """
    columns = index.shape[0]
    size, groups = scheme.group_size(columns), scheme.groups(columns)
    if columns and (int(index.min()) < 0 or int(index.max()) >= groups):
        raise fault.malformed(f"g_idx names a group outside 0..{groups - 1}")
    if np.array_equal(index, np.arange(columns) // size):
        return None
    if int(np.bincount(index, minlength=groups).max()) > size:
        raise fault.malformed(f"g_idx puts more than {size} columns in one group")
    return np.ascontiguousarray(index, dtype=np.int32)
