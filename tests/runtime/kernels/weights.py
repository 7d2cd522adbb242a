"""Random weights of every form that a WeightSource can yield, as hypothesis strategies."""

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from quant.format.scheme import IntScheme, PerChannel, PerGroup
from quant.format.tensor import QuantizedTensor, Weight

FLOAT_TYPES: tuple[Any, ...] = (np.float32, np.float16, ml_dtypes.bfloat16)
KINDS = ("symmetric", "zero_point", "minimum")


def scattered_groups(random: np.random.Generator, columns: int, size: int) -> npt.NDArray[np.int32]:
    """Groups of activation ordering: each column's group, in no order."""
    groups = np.arange(columns, dtype=np.int32) // size
    return random.permutation(groups).astype(np.int32)


def quantized(
    rows: int,
    columns: int,
    *,
    num_bits: int = 4,
    group_size: int | None = 32,
    kind: str = "symmetric",
    scattered: bool = False,
    scale_type: Any = np.float16,
    seed: int = 0,
) -> QuantizedTensor:
    """Random codes over the whole range of the type; about as large as a real weight."""
    random = np.random.default_rng(seed)
    granularity = PerChannel() if group_size is None else PerGroup(group_size)
    scheme = IntScheme(num_bits, kind == "symmetric", granularity)
    low, high = scheme.qmin, scheme.qmax
    if kind == "minimum":
        low, high = 0, (1 << num_bits) - 1
    groups = scheme.groups(columns)
    scale = random.uniform(0.5, 1.5, (rows, groups)) / ((1 << num_bits) * np.sqrt(columns))
    zero_point = random.integers(scheme.qmin, scheme.qmax + 1, (rows, groups))
    minimum = -scale * random.uniform(0.0, high, (rows, groups))
    size = scheme.group_size(columns)
    return QuantizedTensor(
        scheme,
        random.integers(low, high + 1, (rows, columns)).astype(np.int8),
        scale.astype(scale_type),
        zero_point.astype(np.int8) if kind == "zero_point" else None,
        minimum.astype(scale_type) if kind == "minimum" else None,
        scattered_groups(random, columns, size) if scattered else None,
    )


@st.composite
def weights(draw: st.DrawFn, rows: int | None = None, columns: int | None = None) -> Weight:
    """[rows, columns] of any storage; sizes are drawn where they are not given."""
    rows = rows or draw(st.integers(1, 140))
    columns = columns or draw(st.integers(1, 140))
    dtype = draw(st.sampled_from(FLOAT_TYPES))
    seed = draw(st.integers(0, 2**16))
    if draw(st.booleans()):
        values = np.random.default_rng(seed).standard_normal((rows, columns))
        floats: Weight = (values / np.sqrt(columns)).astype(dtype)
        return floats
    kind = draw(st.sampled_from(KINDS))
    return quantized(
        rows,
        columns,
        num_bits=draw(st.integers(2, 7 if kind == "minimum" else 8)),
        group_size=draw(st.sampled_from([1, 3, 8, 32, 33, 64, 100, None])),
        kind=kind,
        scattered=draw(st.booleans()),
        scale_type=dtype,
        seed=seed,
    )


def as_float32(weight: Weight) -> npt.NDArray[np.float32]:
    if isinstance(weight, QuantizedTensor):
        return weight.dequantize()
    return weight.astype(np.float32)
