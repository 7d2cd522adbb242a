"""Weights rounded to integers at build time: only where a type was asked for by name."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from compile.to_onnx.types import Form, stored_scheme
from quant.format.errors import UnsupportedModelError
from quant.format.rounding import quantize_codes, without_zeros
from quant.format.scheme import IntScheme
from quant.format.tensor import QuantizedTensor

CHUNK_ELEMENTS = 1 << 16
"""Rows are searched in chunks whose temporaries stay in a processor's cache."""
REACHES = {
    "int4": (7.5, 7.0, 7.25, 7.75, 8.0, 8.4, 8.9, 9.5, 10.2, 11.0, 12.0),
    "int8": (127.5, 127.0, 128.0),
}
"""Levels that the largest magnitude of a group is tried at: larger ones clip it."""
SHARES = (1.0, 0.95, 0.9, 0.84, 0.77, 0.7)
"""Parts of a group's range, zero included, that its levels are tried on with a zero point."""
Float32 = npt.NDArray[np.float32]


def requantize(name: str, values: npt.NDArray[np.generic], form: Form) -> QuantizedTensor:
    """`values` [out, in] in the integers of `form`, each the nearest under its scale, the float32
    scales (and zero points, where the form has them) those of least squared error among a few and
    what least squares makes of them.

    Raises UnsupportedModelError naming the tensor that holds numbers that are not finite.
    """
    scheme = stored_scheme(form)
    rows, columns = values.shape
    codes = np.empty((rows, columns), np.int8)
    scale = np.empty((rows, scheme.groups(columns)), np.float32)
    zero_point = None if scheme.symmetric else np.empty(scale.shape, np.int8)
    step = max(1, CHUNK_ELEMENTS // columns)
    for start in range(0, rows, step):
        chunk = values[start : start + step].astype(np.float32)
        if not np.isfinite(chunk).all():
            raise UnsupportedModelError(f"tensor {name} holds numbers that are not finite")
        groups = chunk.reshape(len(chunk), scale.shape[1], -1)
        found, zeros = _grids(groups, scheme, REACHES[form.dtype])
        exact = quantize_codes(groups, found[..., None], zeros[..., None], scheme.qmin, scheme.qmax)
        scale[start : start + step] = found
        codes[start : start + step] = exact.reshape(chunk.shape)
        if zero_point is not None:
            zero_point[start : start + step] = zeros
    return QuantizedTensor(scheme, codes, scale, zero_point)


def _grids(groups: Float32, scheme: IntScheme, reaches: Sequence[float]) -> tuple[Float32, Float32]:
    """float32 scales and zero points, [rows, groups] each, of [rows, groups, size]; (1, 0) where
    all numbers are 0.

    With codes c of a candidate, its zero point taken off, x.c / c.c loses least, and what it loses
    is x.x - (x.c)**2 / c.c.
    """
    largest = without_zeros(np.abs(groups).max(axis=-1))
    best, zeros, gain = np.ones_like(largest), np.zeros_like(largest), np.zeros_like(largest)
    for scale, zero in _candidates(groups, largest, scheme, reaches):
        codes = quantize_codes(groups, scale[..., None], zero[..., None], scheme.qmin, scheme.qmax)
        codes -= zero[..., None]
        cross = np.einsum("rgs,rgs->rg", groups, codes)
        square = without_zeros(np.einsum("rgs,rgs->rg", codes, codes))
        better = cross * cross / square > gain
        best = np.where(better, cross / square, best)
        zeros = np.where(better, zero, zeros)
        gain = np.where(better, cross * cross / square, gain)
    return best.astype(np.float32, copy=False), zeros.astype(np.float32, copy=False)


def _candidates(
    groups: Float32, largest: Float32, scheme: IntScheme, reaches: Sequence[float]
) -> Iterator[tuple[Float32, Float32]]:
    """Scales and zero points to try: none of the latter, then those of the group's own range."""
    for reach in reaches:
        yield largest / np.float32(reach), np.zeros_like(largest)
    if scheme.symmetric:
        return
    lowest = np.minimum(groups.min(axis=-1), 0)
    span = without_zeros(np.maximum(groups.max(axis=-1), 0) - lowest)
    steps = scheme.qmax - scheme.qmin
    for share in SHARES:
        scale = span * np.float32(share / steps)
        zero = np.rint(scheme.qmin - np.float32(share) * lowest / scale)
        yield scale, zero.clip(scheme.qmin, scheme.qmax)
