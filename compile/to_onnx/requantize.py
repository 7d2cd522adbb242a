"""Weights rounded to integers at build time: only where a type was asked for by name."""

import numpy as np
import numpy.typing as npt

from compile.to_onnx.types import Form, stored_scheme
from quant.format.errors import UnsupportedModelError
from quant.format.ggml_fit import Groups, fit_signed
from quant.format.ggml_grid import Levels
from quant.format.gguf_types import Q4_0, Q8_0
from quant.format.rounding import quantize_codes
from quant.format.tensor import QuantizedTensor

CHUNK_ELEMENTS = 1 << 16
"""Rows are searched in chunks whose temporaries stay in a processor's cache."""
REACHES = {
    "int4": (7.5, 7.0, 8.0, 8.7, 9.5, 10.5, 12.0),
    "int8": (127.5, 127.0, 128.0),
}
"""Levels that the largest magnitude of a group is tried at: larger ones clip it."""
ROUNDS = {"int4": 1, "int8": 0}
Float32 = npt.NDArray[np.float32]


def requantize(name: str, values: npt.NDArray[np.generic], form: Form) -> QuantizedTensor:
    """`values` [out, in] in the symmetric integers of `form`, each the nearest under its scale, the
    float32 scales those of least squared error among a few and what least squares makes of them.

    Raises UnsupportedModelError naming the tensor that holds numbers that are not finite.
    """
    scheme = stored_scheme(form)
    rows, columns = values.shape
    codes = np.empty((rows, columns), np.int8)
    scale = np.empty((rows, scheme.groups(columns)), np.float32)
    step = max(1, CHUNK_ELEMENTS // columns)
    for start in range(0, rows, step):
        chunk = values[start : start + step].astype(np.float32)
        if not np.isfinite(chunk).all():
            raise UnsupportedModelError(f"tensor {name} holds numbers that are not finite")
        groups = chunk.reshape(len(chunk), scale.shape[1], -1)
        found = _scales(groups, form.dtype)
        exact = quantize_codes(groups, found[..., None], None, scheme.qmin, scheme.qmax)
        scale[start : start + step] = found
        codes[start : start + step] = exact.reshape(chunk.shape)
    return QuantizedTensor(scheme, codes, scale)


def _scales(groups: Float32, dtype: str) -> Float32:
    """float32 [rows, groups] of [rows, groups, size]; 1 where all numbers are 0."""
    rows, count, size = groups.shape
    x = np.ascontiguousarray(groups.reshape(-1, size).T)
    levels = Levels(Q4_0 if dtype == "int4" else Q8_0)
    problem = Groups(x, np.ones_like(x), levels)
    found = fit_signed(problem, REACHES[dtype], ROUNDS[dtype]).reshape(rows, count)
    return np.where(groups.any(axis=-1), found, np.float32(1))
