"""Random weights of every form that a WeightSource can yield, as hypothesis strategies."""

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from quant.format.codebooks import LARGEST
from quant.format.ggml_kblocks import LAYOUTS, NestedScales, quantized_tensor
from quant.format.scheme import (
    ActivationScheme,
    Codebook,
    CodebookScheme,
    Granularity,
    IntScheme,
    PerBlock,
    PerChannel,
    PerGroup,
    PerTensor,
)
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


CODEBOOKS: dict[str, tuple[Codebook, Granularity, str]] = {
    "fp8-tensor": ("e4m3", PerTensor(), "float32"),
    "fp8-channel": ("e4m3", PerChannel(), "bfloat16"),
    "fp8-block": ("e4m3", PerBlock(48, 40), "float32"),
    "mxfp8": ("e4m3", PerGroup(32), "float8_e8m0fnu"),
    "mxfp4": ("e2m1", PerGroup(32), "float8_e8m0fnu"),
    "nvfp4": ("e2m1", PerGroup(16), "float8_e4m3fn"),
    "iq4_nl": ("iq4_nl", PerGroup(32), "float16"),
    "iq4_xs": ("iq4_nl", PerGroup(32), "float32"),
}
"""The codebook, its scales' granularity, and what a scale is stored as."""


def codebook_weight(
    rows: int,
    columns: int,
    kind: str,
    *,
    seed: int = 0,
    activation: ActivationScheme | None = None,
    input_scale: float | None = None,
) -> QuantizedTensor:
    """Random codes of one of CODEBOOKS, each of them but NaN; about as large as a real weight."""
    random = np.random.default_rng(seed)
    codebook, granularity, stored = CODEBOOKS[kind]
    names = {"float8_e8m0fnu": "e8m0", "float8_e4m3fn": "e4m3"}
    scales = names.get(stored, "float")
    scheme = CodebookScheme(codebook, granularity, scales, activation)  # type: ignore[arg-type]
    codes = random.integers(0, 256 if codebook == "e4m3" else 16, (rows, columns)).astype(np.uint8)
    codes = np.where((codes & 0x7F) == 0x7F, 0, codes).astype(np.uint8)
    scale_rows = rows
    if isinstance(granularity, PerBlock | PerTensor):
        scale_rows = 1 if isinstance(granularity, PerTensor) else -(-rows // granularity.rows)
    scale = random.uniform(0.5, 1.5, (scale_rows, scheme.groups(columns)))
    global_scale = None
    if stored == "float8_e4m3fn":
        scale, global_scale = scale * 200, 200 * LARGEST[codebook] * columns**0.5 * 1.1
    else:
        scale /= LARGEST[codebook] * columns**0.5
    dtype = np.dtype(getattr(ml_dtypes, stored, stored))
    return QuantizedTensor(
        scheme,
        codes.view(np.int8),
        scale.astype(np.float32).astype(dtype),
        global_scale=global_scale,
        input_scale=input_scale,
    )


K_TYPES = {kind.name: kind for kind in LAYOUTS}
"""The types with nested scales; rows are whole blocks of 256."""


def nested_weight(rows: int, columns: int, type_name: str, *, seed: int = 0) -> QuantizedTensor:
    """Random codes and sub-scales, over the whole range of the type; as large as a real one."""
    random = np.random.default_rng(seed)
    kind = K_TYPES[type_name]
    layout = LAYOUTS[kind]
    bits = layout.scheme.num_bits
    low = 0 if layout.has_minimum or bits == 4 else -(1 << (bits - 1))
    codes = random.integers(low, low + (1 << bits), (rows, columns)).astype(np.int8)
    groups, top = (rows, columns // layout.group), max(-layout.lowest, layout.highest)
    largest = 127 if isinstance(layout.scheme, CodebookScheme) else 1 << bits
    d = random.uniform(0.5, 1.5, (rows, columns // 256)) / (top * largest * columns**0.5)
    sub_scales = random.integers(layout.lowest, layout.highest + 1, groups).astype(np.int8)
    m = sub_minimums = None
    if layout.has_minimum:
        m = (d * largest / 2).astype(np.float16)
        sub_minimums = random.integers(0, layout.highest + 1, groups).astype(np.uint8)
    scales = NestedScales(d.astype(np.float16), sub_scales, m, sub_minimums)
    return quantized_tensor(kind, codes, scales)


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
    if draw(st.booleans()):
        return codebook_weight(rows, columns, draw(st.sampled_from([*CODEBOOKS])), seed=seed)
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
