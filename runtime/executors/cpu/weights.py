"""From a WeightSource to packed native matrices, one tensor at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from compile.input_rounding import InputRounding, input_rounding
from quant.format.codebooks import codebook_values
from quant.format.errors import FileFormatError, UnsupportedModelError
from quant.format.ggml_kblocks import LAYOUTS, nested_scales
from quant.format.scheme import CodebookScheme, PerBlock
from quant.format.stored import FileBytes, HoldsFloats, HoldsIntegers, StoredIntegers
from quant.format.tensor import FloatArray, QuantizedTensor, Weight, WeightSource
from runtime.kernels.cpu._native import Matrix, ThreadPool

FLOATS = ("float32", "float16", "bfloat16")
RUN = 32
"""Columns that one scale of a rounded input serves."""
RUNS_OF_INT8 = InputRounding("int8", RUN, span=127.0)
"""How integer products round an input that the model itself leaves as it is."""


@dataclass(frozen=True)
class Packed:
    """column_order: int32 [in], the order in which the matrix wants x's columns; None: as is.
    rounding: how x is rounded before, None: not at all. A matrix in quads takes x as int8, rounded
    in the matrix's order of columns; others take floats, rounded in x's own order."""

    matrix: Matrix
    column_order: npt.NDArray[np.int32] | None = None
    rounding: InputRounding | None = None

    @property
    def order_key(self) -> bytes:
        """Equal for matrices that can share a gathered x."""
        return b"" if self.column_order is None else self.column_order.tobytes()


class Weights:
    """Loads and packs; a matrix that two ops name is packed once. Keeps no source array."""

    def __init__(self, source: WeightSource, pool: ThreadPool, integer_products: bool) -> None:
        self._source = source
        self._pool = pool
        self._integer_products = integer_products
        self._packed: dict[str, Packed] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all packed matrices."""
        return sum(packed.matrix.nbytes for packed in self._packed.values())

    def matrix(self, name: str, shape: tuple[int, int]) -> Packed:
        if name not in self._packed:
            self._packed[name] = (
                self._as_stored(name, shape)
                or self._from_file(name, shape)
                or self._decoded(name, shape)
            )
        return self._packed[name]

    def _as_stored(self, name: str, shape: tuple[int, int]) -> Packed | None:
        """Packed without an array of codes in between, where the source has integers for it."""
        if not isinstance(self._source, HoldsIntegers):
            return None
        weight = self._source.stored(name)
        if weight is None or weight.shape != shape:
            return None
        rounding = input_rounding(name, weight)
        with _naming(name, weight.rows.data):
            packed = pack_stored(weight, self._pool, rounding, self._integer_products)
        self._source.forget(name)
        return packed

    def _from_file(self, name: str, shape: tuple[int, int]) -> Packed | None:
        """Floats, packed a few rows at a time as they are read."""
        floats = self._source.floats(name) if isinstance(self._source, HoldsFloats) else None
        if floats is None or floats.shape != shape:
            return None
        with _naming(name, floats.data):
            place = _place(floats.data)
            return Packed(Matrix.from_file(place, shape[1], floats.dtype, self._pool))

    def _decoded(self, name: str, shape: tuple[int, int]) -> Packed:
        weight = self._load(name, shape)
        _require_numbers(name, weight)
        rounding = input_rounding(name, weight)
        return pack(weight, self._pool, rounding, self._integer_products)

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


def pack(
    weight: Weight,
    pool: ThreadPool,
    rounding: InputRounding | None = None,
    integer_products: bool = False,
) -> Packed:
    """Copy a weight [out, in] into the native layout; the codes and scales stay as they are.

    integer_products: multiply inputs rounded to int8 wherever the weight's groups and the model's
    own rounding allow it; by `RUNS_OF_INT8` where the model rounds nothing.
    """
    if not isinstance(weight, QuantizedTensor):
        return Packed(Matrix.from_numbers(*_numbers(np.ascontiguousarray(weight)), pool))
    starts, order = group_layout(weight)
    numbers = nested_numbers(weight) or plain_numbers(weight)
    codes = np.ascontiguousarray(weight.codes)
    if isinstance(weight.scheme, CodebookScheme):
        table = None
        if weight.scheme.num_bits == 4:
            table = np.ascontiguousarray(codebook_values(weight.scheme.codebook))
        divisor = 1.0 if weight.global_scale is None else weight.global_scale
        matrix = Matrix.from_codebook(
            codes, table, _numbers(numbers.scale), divisor, starts, order, pool, numbers.sub_scale
        )
        return Packed(matrix, order, rounding)
    matrix = Matrix.from_integers(
        codes,
        weight.scheme.num_bits,
        _numbers(numbers.scale),
        None if weight.zero_point is None else _for_each_row(weight.zero_point, weight),
        None if numbers.minimum is None else _numbers(numbers.minimum),
        starts,
        order,
        pool,
        numbers.sub_scale,
        numbers.sub_minimum,
        quads=integer_products and rounds_to_int8(rounding),
    )
    return Packed(matrix, order, rounding or (RUNS_OF_INT8 if matrix.in_quads else None))


def pack_stored(
    weight: StoredIntegers,
    pool: ThreadPool,
    rounding: InputRounding | None = None,
    integer_products: bool = False,
) -> Packed:
    """As `pack`. Raises RuntimeError where a file ends before its rows do."""
    rows = weight.rows
    matrix = Matrix.from_packed(
        _place(rows.data) if isinstance(rows.data, FileBytes) else rows.data,
        weight.shape[1],
        rows.block,
        rows.block_bytes,
        rows.offset,
        [astuple(plane) for plane in rows.planes],
        weight.scheme.num_bits,
        _numbers(weight.scale),
        weight.zero_point,
        None if weight.minimum is None else _numbers(weight.minimum),
        weight.group_starts(),
        pool,
        weight.sub_scale,
        weight.sub_minimum,
        quads=integer_products and rounds_to_int8(rounding),
        turned=rows.turned,
    )
    return Packed(matrix, None, rounding or (RUNS_OF_INT8 if matrix.in_quads else None))


def _place(data: FileBytes) -> tuple[str, int, int, int]:
    return str(data.path), data.begin, data.rows, data.row_bytes


@contextmanager
def _naming(name: str, data: object) -> Iterator[None]:
    """A file that cannot be read to the end is told by its name and the tensor's."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(data, FileBytes):
            raise
        raise FileFormatError(data.path, f"tensor '{name}' {error}") from error


def rounds_to_int8(rounding: InputRounding | None) -> bool:
    """Whether an input rounded so, or not at all, can be handed over as int8 codes in runs."""
    if rounding is None:
        return True
    plain = rounding.numbers == "int8" and rounding.scales == "float"
    return plain and rounding.group % RUN == 0


@dataclass(frozen=True)
class GroupNumbers:
    """Scales and minimums as the kernels take them: [out, groups]; or, with `sub_scale` int8
    [out, groups], those of several groups, which each multiplies by its own."""

    scale: FloatArray
    minimum: FloatArray | None = None
    sub_scale: npt.NDArray[np.int8] | None = None
    sub_minimum: npt.NDArray[np.int8] | None = None


def plain_numbers(weight: QuantizedTensor) -> GroupNumbers:
    return GroupNumbers(row_scales(weight), weight.minimum)


def nested_numbers(weight: QuantizedTensor) -> GroupNumbers | None:
    """The factors that a K-quant's scales are the products of, which take a quarter of their room;
    None where the weight has none."""
    layouts = {kind.name: kind for kind in LAYOUTS}
    if weight.blocks is None or weight.blocks.type_name not in layouts:
        return None
    nested = nested_scales(layouts[weight.blocks.type_name], weight.blocks.data)
    if nested.m is None or nested.sub_minimums is None:
        return GroupNumbers(nested.d, None, nested.sub_scales)
    return GroupNumbers(nested.d, -nested.m, nested.sub_scales, nested.sub_minimums.view(np.int8))


def row_scales(weight: QuantizedTensor) -> FloatArray:
    """[out, groups]: the stored scales, one row for each output row. 8-bit scales become bfloat16,
    which holds every e4m3 and e8m0 number."""
    scale = weight.scale
    if scale.dtype.name not in FLOATS:
        scale = scale.astype(np.float32).astype(ml_dtypes.bfloat16)
    if isinstance(weight.scheme.granularity, PerBlock):
        return np.repeat(scale, weight.scheme.granularity.rows, axis=0)[: len(weight.codes)]
    return _for_each_row(scale, weight)


def _for_each_row(numbers: npt.NDArray[Any], weight: QuantizedTensor) -> npt.NDArray[Any]:
    """One row of scales or zero points for the whole tensor becomes one for each output row."""
    return np.ascontiguousarray(np.broadcast_to(numbers, (len(weight.codes), numbers.shape[1])))


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
    return (array if name == "float32" else array.view(np.uint16)), name


def _require_numbers(name: str, weight: Weight) -> None:
    """e4m3's two codes for NaN are no weight, and the kernels do not know them."""
    if isinstance(weight, QuantizedTensor) and isinstance(weight.scheme, CodebookScheme):
        eight_bits = weight.scheme.num_bits == 8
        if eight_bits and bool(((weight.codes & 0x7F) == 0x7F).any()):
            raise UnsupportedModelError(
                f"tensor {name} holds NaN; the checkpoint is damaged: download or quantize it again"
            )
