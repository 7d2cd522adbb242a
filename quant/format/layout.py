"""What a quantized weight is stored as, known without a weight: names, dtypes and shapes.

An encoder is asked itself, with a weight of zeros, so that there is no second description that
could differ from what is written. It is asked with few rows: what is stored grows evenly with them,
from one whole number of words and of blocks to the next.
"""

import math
from functools import cache
from typing import Any, Literal

import ml_dtypes
import numpy as np

from quant.format.containers import CONTAINERS, Format
from quant.format.gguf_types import TYPE_BY_NAME
from quant.format.scheme import CodebookScheme, IntScheme, PerBlock, QuantizedScheme, scale_shape
from quant.format.tensor import GgmlBlocks, QuantizedTensor

FloatName = Literal["float32", "float16", "bfloat16"]
Part = tuple[str, "np.dtype[Any]", tuple[int, ...]]
"""What follows the module's name, the type and the shape of one stored tensor."""
_ROWS = 256
"""Whole words of any number of bits, whole blocks of GGUF."""


@cache
def stored_parts(
    format_name: Format, scheme: QuantizedScheme, shape: tuple[int, int], scales: FloatName
) -> tuple[Part, ...]:
    """The stored tensors of a weight that the format can hold; scales: type of float scales."""
    rows, columns = shape
    step = _ROWS
    if isinstance(scheme.granularity, PerBlock):
        step = math.lcm(step, scheme.granularity.rows)
    if rows < 3 * step:
        return _asked(format_name, scheme, shape, scales)
    few = step + rows % step
    first, second = (
        _asked(format_name, scheme, (count, columns), scales) for count in (few, few + step)
    )
    steps = (rows - few) // step
    return tuple(
        (name, dtype, tuple(a + (b - a) * steps for a, b in zip(sizes, more, strict=True)))
        for (name, dtype, sizes), (_, _, more) in zip(first, second, strict=True)
    )


def stored_bytes(
    format_name: Format, scheme: QuantizedScheme, shape: tuple[int, int], scales: FloatName
) -> int:
    """Payload of a weight that the format can hold, scales and all."""
    parts = stored_parts(format_name, scheme, shape, scales)
    return sum(math.prod(sizes) * dtype.itemsize for _, dtype, sizes in parts)


def _asked(
    format_name: Format, scheme: QuantizedScheme, shape: tuple[int, int], scales: FloatName
) -> tuple[Part, ...]:
    encoded = CONTAINERS[format_name].encode("", blank_weight(scheme, shape, scales))
    return tuple((name, array.dtype, array.shape) for name, array in encoded.items())


def blank_weight(
    scheme: QuantizedScheme, shape: tuple[int, int], scales: FloatName
) -> QuantizedTensor:
    """A weight of zeros with every part that `scheme` calls for."""
    blocks = None
    if scheme.ggml_type is not None:
        row_bytes = TYPE_BY_NAME[scheme.ggml_type].nbytes(shape) // shape[0]
        blocks = GgmlBlocks(scheme.ggml_type, np.zeros((shape[0], row_bytes), np.uint8))
    activation = scheme.activation
    stored_input = activation is not None and not activation.dynamic
    two_levels = isinstance(scheme, CodebookScheme) and scheme.scales == "e4m3"
    groups = scale_shape(scheme, shape)
    return QuantizedTensor(
        scheme,
        codes=np.zeros(shape, np.int8),
        scale=np.ones(groups, _scale_dtype(scheme, scales)),
        zero_point=None if scheme.symmetric else np.zeros(groups, np.int8),
        global_scale=1.0 if two_levels else None,
        input_scale=1.0 if stored_input or (two_levels and activation is not None) else None,
        blocks=blocks,
    )


def float_dtype(name: FloatName) -> "np.dtype[Any]":
    """numpy's type of that name, which for bfloat16 is another package's."""
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)


def _scale_dtype(scheme: QuantizedScheme, scales: FloatName) -> "np.dtype[Any]":
    if isinstance(scheme, IntScheme):
        return float_dtype(scales)
    # Those of codebooks are few, and 16 bits of them would cost precision.
    names = {"e4m3": "float8_e4m3fn", "e8m0": "float8_e8m0fnu", "float": "float32"}
    return np.dtype(names[scheme.scales])
