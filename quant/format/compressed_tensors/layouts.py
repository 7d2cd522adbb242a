"""How the codes of a weight lie in its tensors: packed integers, one per byte, or two per byte."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import ml_dtypes
import numpy as np
import numpy.typing as npt

from quant.format.codec import Fault, Headers, LoadRaw, require_part, require_shape
from quant.format.compressed_tensors.args import FLOAT, INT, MXFP4, MXFP8, NAIVE, NVFP4, PACKED
from quant.format.packing import pack_signed, packed_words, unpack_signed
from quant.format.scheme import IntScheme, QuantizedScheme
from quant.format.stored import FileBytes, PackedRows, byte_rows, dense_rows

Codes = npt.NDArray[np.int8]
Stored = dict[str, npt.NDArray[Any]]
LocatePart = Callable[[str], FileBytes | None]


@dataclass(frozen=True)
class Parts:
    """The stored tensors of one module by suffix, as headers describe them.

    dense_words: whether the writer surely packed a dense stream of bits.
    """

    headers: Headers
    names: Mapping[str, str]
    load: LoadRaw
    fault: Fault
    dense_words: bool

    def shape(self, suffix: str, *dtypes: str) -> tuple[int, ...]:
        """Shape of a part that must exist in one of `dtypes`."""
        return require_part(self.headers, self.names, suffix, dtypes, self.fault)

    def matrix(self, suffix: str, *dtypes: str) -> tuple[int, int]:
        """The same for one that must be a matrix that is not empty."""
        shape = self.shape(suffix, *dtypes)
        if len(shape) != 2 or 0 in shape:
            raise self.fault.malformed(f"has shape {list(shape)}, not [out, in]")
        return shape[0], shape[1]

    def refuse_padded_words(self, count: int, num_bits: int) -> None:
        """Old writers padded each word to whole codes.

        Nearly always that takes more words, so that the shape tells; one word is the same in both.
        """
        words, padded_words = packed_words(count, num_bits), -(-count // (32 // num_bits))
        ambiguous = 32 % num_bits and 1 < words == padded_words
        if ambiguous and not self.dense_words:
            raise self.fault.unsupported(
                f"its {num_bits}-bit codes may be padded to whole words, as compressed-tensors "
                "before 0.18 did; write it again with a current release"
            )


@dataclass(frozen=True)
class LoadedParts:
    """The numbers of the stored tensors of one module, by suffix, read when asked for."""

    names: Mapping[str, str]
    load: LoadRaw

    def __call__(self, suffix: str) -> npt.NDArray[Any]:
        return self.load(self.names[suffix])

    def maybe(self, suffix: str) -> npt.NDArray[Any] | None:
        """None where the module has no such part."""
        return self(suffix) if suffix in self.names else None


class Layout(Protocol):
    """One way to store codes."""

    @property
    def suffixes(self) -> tuple[str, ...]:
        """The tensors that hold the codes, the one that tells the layout first."""
        ...

    def encode(self, scheme: QuantizedScheme, codes: Codes) -> Stored: ...

    def logical_shape(self, scheme: QuantizedScheme, parts: Parts) -> tuple[int, int]:
        """[out, in] from headers. Raises FileFormatError when they contradict each other."""
        ...

    def decode(
        self, scheme: QuantizedScheme, shape: tuple[int, int], part: LoadedParts
    ) -> Codes: ...

    def rows(
        self, scheme: IntScheme, shape: tuple[int, int], locate: LocatePart
    ) -> PackedRows | None:
        """The codes of `decode`, all of which the scheme has, where they lie; None for others."""
        ...


class PackedIntegers:
    """Codes of 2 to 8 bits as a dense stream in int32 words."""

    suffixes = ("weight_packed", "weight_shape")

    def encode(self, scheme: QuantizedScheme, codes: Codes) -> Stored:
        return {
            "weight_packed": pack_signed(codes, scheme.num_bits),
            "weight_shape": np.array(codes.shape, dtype=np.int64),
        }

    def logical_shape(self, scheme: QuantizedScheme, parts: Parts) -> tuple[int, int]:
        fault, bits = parts.fault, scheme.num_bits
        packed = parts.shape("weight_packed", "int32")
        stored = parts.shape("weight_shape", "int64", "int32")
        require_shape(stored, (2,), "weight_shape", fault)
        rows, columns = (int(size) for size in parts.load(parts.names["weight_shape"]))
        if rows <= 0 or columns <= 0:
            raise fault.malformed(f"weight_shape says [{rows}, {columns}]")
        require_shape(packed, (rows, packed_words(columns, bits)), "weight_packed", fault)
        parts.refuse_padded_words(columns, bits)
        return rows, columns

    def decode(self, scheme: QuantizedScheme, shape: tuple[int, int], part: LoadedParts) -> Codes:
        return unpack_signed(part("weight_packed"), scheme.num_bits, shape[1])

    def rows(
        self, scheme: IntScheme, shape: tuple[int, int], locate: LocatePart
    ) -> PackedRows | None:
        data = locate("weight_packed")
        return None if data is None else dense_rows(data, scheme.num_bits, shape[1])


class Bytes:
    """One code in each byte: int8, or float8_e4m3fn whose bits are the code."""

    suffixes = ("weight",)

    def encode(self, scheme: QuantizedScheme, codes: Codes) -> Stored:
        integers = isinstance(scheme, IntScheme)
        return {"weight": codes if integers else codes.view(ml_dtypes.float8_e4m3fn)}

    def logical_shape(self, scheme: QuantizedScheme, parts: Parts) -> tuple[int, int]:
        integers = isinstance(scheme, IntScheme)
        return parts.matrix("weight", "int8" if integers else "float8_e4m3fn")

    def decode(self, scheme: QuantizedScheme, shape: tuple[int, int], part: LoadedParts) -> Codes:
        codes: Codes = part("weight").view(np.int8)
        return codes

    def rows(
        self, scheme: IntScheme, shape: tuple[int, int], locate: LocatePart
    ) -> PackedRows | None:
        """Bytes may hold more than a scheme of fewer bits has, which `decode` looks for."""
        data = locate("weight") if scheme.num_bits == 8 else None
        return None if data is None else byte_rows(data, shape[1])


class Nibbles:
    """Two codes in each byte, the even column in the low half."""

    suffixes = ("weight_packed",)

    def encode(self, scheme: QuantizedScheme, codes: Codes) -> Stored:
        bits = codes.view(np.uint8)
        return {"weight_packed": bits[:, 0::2] | (bits[:, 1::2] << np.uint8(4))}

    def logical_shape(self, scheme: QuantizedScheme, parts: Parts) -> tuple[int, int]:
        rows, halves = parts.matrix("weight_packed", "uint8")
        return rows, 2 * halves

    def decode(self, scheme: QuantizedScheme, shape: tuple[int, int], part: LoadedParts) -> Codes:
        packed = part("weight_packed")
        codes = np.empty(shape, dtype=np.uint8)
        codes[:, 0::2], codes[:, 1::2] = packed & np.uint8(15), packed >> np.uint8(4)
        return codes.view(np.int8)

    def rows(
        self, scheme: IntScheme, shape: tuple[int, int], locate: LocatePart
    ) -> PackedRows | None:
        return None


LAYOUTS: Mapping[str, Layout] = {
    PACKED: PackedIntegers(),
    INT: Bytes(),
    NAIVE: Bytes(),
    FLOAT: Bytes(),
    MXFP8: Bytes(),
    NVFP4: Nibbles(),
    MXFP4: Nibbles(),
}
