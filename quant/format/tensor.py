"""The canonical form of a weight, which every container is read into and written from."""

import hashlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from quant.format.codebooks import decode_codebook
from quant.format.scheme import CodebookScheme, PerBlock, PerGroup, QuantizedScheme, Scheme

FloatArray = npt.NDArray[Any]
"""float32, float16 or an ml_dtypes type such as bfloat16, which numpy's typing does not know."""


@dataclass(frozen=True, eq=False)
class GgmlBlocks:
    """The blocks that a weight was read from or chosen as.

    A K-quant's float32 scales are products of a float16 and small integers; only the blocks tell
    the factors, so that GGUF gets the very same ones again.
    type_name: ggml's, e.g. "Q4_K". data: uint8 [out, bytes per row].
    """

    type_name: str
    data: npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """Codes of one linear's weight, with everything needed to read them.

    codes: int8 [out, in]. IntScheme: within [scheme.qmin, scheme.qmax]; with `minimum`, in
    [0, 2**num_bits). CodebookScheme: the stored bits (e4m3: the byte; 4-bit codebooks: 0 to 15).
    scale: float16, bfloat16 or float32, or for codebooks float8_e4m3fn or float8_e8m0fnu, exactly
    as stored: [out, groups]; PerBlock: [ceil(out / rows), groups]; PerTensor: [1, 1].
    zero_point: int8 [out, groups], asymmetric schemes only: w = (code - zero_point) * scale.
    minimum: float [out, groups], GGUF's types with a minimum only: w = code * scale + minimum.
    group_index: int32 [in], the group of each column, only where it is not column // group_size.
    global_scale: NVFP4 only, a divisor as compressed-tensors has it: w = value * scale / it.
    input_scale: for activations with a stored scale: the multiplier of the rounded input (NVFP4:
    the divisor of its group scales, as `global_scale` is).
    blocks: the same numbers as ggml's blocks, where the weight was made of them.
    """

    scheme: QuantizedScheme
    codes: npt.NDArray[np.int8]
    scale: FloatArray
    zero_point: npt.NDArray[np.int8] | None = None
    minimum: FloatArray | None = None
    group_index: npt.NDArray[np.int32] | None = None
    global_scale: float | None = None
    input_scale: float | None = None
    blocks: GgmlBlocks | None = None

    @property
    def shape(self) -> tuple[int, int]:
        rows, columns = self.codes.shape
        return rows, columns

    def column_groups(self) -> npt.NDArray[np.int32]:
        """int32 [in]: the group of each input column."""
        if self.group_index is not None:
            return self.group_index
        columns = self.shape[1]
        size = min(self.scheme.group_size(columns), max(columns, 1))
        return (np.arange(columns, dtype=np.int32) // size).astype(np.int32)

    def integers(self, rows: slice = slice(None)) -> npt.NDArray[np.int16]:
        """int16 [rows, in]: code - zero_point, which no choice of zero point changes; of a codebook
        the stored bits, from 0 on."""
        codebook = isinstance(self.scheme, CodebookScheme)
        codes = self.codes[rows]
        integers = (codes.view(np.uint8) if codebook else codes).astype(np.int16)
        if self.zero_point is not None:
            lone = len(self.zero_point) != len(self.codes)
            integers -= self.zero_point[slice(None) if lone else rows][:, self.column_groups()]
        return integers

    def dequantize(self) -> npt.NDArray[np.float32]:
        """float32 [out, in]. Exact for integers: every product of a code and a 16-bit scale fits
        float32; codebooks with float32 scales are rounded once."""
        if isinstance(self.scheme, CodebookScheme):
            values = decode_codebook(self.scheme.codebook, self.codes)
        else:
            values = self.codes.astype(np.float32)
        (rows, columns), scale = self.shape, self.effective_scale()
        size = min(self.scheme.group_size(columns), columns)
        # Where groups are equally long, numpy spreads the one number of each over its columns.
        regular = self.group_index is None and scale.shape[1] * size == columns
        group = slice(None) if regular else self.column_groups()
        parts = values.reshape((rows, scale.shape[1], size) if regular else (rows, columns, 1))
        if self.zero_point is not None:
            parts -= self.zero_point.astype(np.float32)[:, group, None]
        parts *= scale[:, group, None]
        if self.minimum is not None:
            parts += self.minimum.astype(np.float32)[:, group, None]
        return values

    def effective_scale(self) -> npt.NDArray[np.float32]:
        """float32 [out, groups]: what each group's values are multiplied by."""
        rows = self.codes.shape[0]
        scale = self.scale.astype(np.float32)
        if self.global_scale is not None:
            scale = scale / np.float32(self.global_scale)
        if isinstance(self.scheme.granularity, PerBlock):
            return scale[self._rows_of_scales(self.scheme.granularity)]
        return np.ascontiguousarray(np.broadcast_to(scale, (rows, scale.shape[1])))

    def _rows_of_scales(self, block: PerBlock) -> npt.NDArray[np.intp]:
        """intp [out]: the row of `scale` that each output row has."""
        rows = len(self.codes)
        return np.arange(rows, dtype=np.intp) // min(block.rows, max(rows, 1))

    def take_rows(self, rows: npt.NDArray[np.intp]) -> "QuantizedTensor":
        """The same weight with its output rows picked in the order `rows`.

        Rows of a block share scales, so that a scheme PerBlock is left with one row of scales for
        each output row: `granularity` then says PerGroup.
        """
        scheme, scale = self.scheme, self.scale
        if isinstance(scheme, CodebookScheme) and isinstance(scheme.granularity, PerBlock):
            scale = scale[self._rows_of_scales(scheme.granularity)]
            scheme = replace(scheme, granularity=PerGroup(scheme.granularity.columns))
        return replace(
            self,
            scheme=scheme,
            codes=np.ascontiguousarray(self.codes[rows]),
            scale=scale[rows] if len(scale) == len(self.codes) else scale,
            zero_point=None if self.zero_point is None else self.zero_point[rows],
            minimum=None if self.minimum is None else self.minimum[rows],
            blocks=self.blocks and GgmlBlocks(self.blocks.type_name, self.blocks.data[rows]),
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
