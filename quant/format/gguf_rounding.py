"""Plain rounding of float weights to ggml blocks, bit-identical with ggml's reference.

Reference: quantize_row_*_ref in ggml-quants.c. The arithmetic is float32 in the same order,
because the order decides how halves fall.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from quant.format.errors import UnsupportedModelError
from quant.format.ggml_fp4 import round_mxfp4
from quant.format.gguf_blocks import BLOCK, FLOATS, LAYOUTS, Bytes, Codes, pack_blocks
from quant.format.gguf_types import IQ4_NL, MXFP4, Q8_0, GgmlType
from quant.format.tensor import FloatArray

Floats = npt.NDArray[np.float32]
Rounded = tuple[Codes, Floats, Floats | None]
PLAINLY_ROUNDED = (*(kind for kind in LAYOUTS if kind != IQ4_NL), MXFP4)
CHUNK_ELEMENTS = 1 << 20
"""Elements rounded at a time, so that temporaries stay small whatever the tensor's size."""


def round_to(name: str, kind: GgmlType, weight: FloatArray) -> Bytes:
    """uint8 [rows, bytes] of a float [rows, columns] or [columns] tensor rounded to `kind`.

    Raises UnsupportedModelError naming the tensor where a number is not finite or does not fit.
    """
    rows = weight.reshape(-1, weight.shape[-1])
    step = max(1, CHUNK_ELEMENTS // rows.shape[1])
    out = np.empty((rows.shape[0], kind.nbytes(rows.shape) // rows.shape[0]), np.uint8)
    for start in range(0, rows.shape[0], step):
        chunk = rows[start : start + step]
        packed = _cast(name, kind, chunk) if kind in FLOATS else _blocks(name, kind, chunk)
        out[start : start + step] = packed
    return out


def _cast(name: str, kind: GgmlType, rows: FloatArray) -> Bytes:
    with np.errstate(over="ignore", under="ignore"):
        cast = rows.astype(FLOATS[kind])
    wrong = ~np.isfinite(cast.astype(np.float32))
    if wrong.any():
        value = rows[wrong][0]
        raise UnsupportedModelError(f"tensor '{name}' holds {value}, which {kind} cannot represent")
    return np.ascontiguousarray(cast).view(np.uint8)


def _blocks(name: str, kind: GgmlType, rows: FloatArray) -> Bytes:
    blocks = rows.astype(np.float32).reshape(-1, BLOCK)
    if kind == MXFP4:
        _require_finite(name, kind, blocks)
        return round_mxfp4(blocks).reshape(rows.shape[0], -1)
    codes, scale, minimum = _rounder(kind)(blocks)
    with np.errstate(over="ignore", under="ignore"):
        narrow = scale.astype(np.float16)
        least = None if minimum is None else minimum.astype(np.float16)
    finite = np.isfinite(narrow) & (True if least is None else np.isfinite(least))
    if not finite.all():
        raise UnsupportedModelError(
            f"tensor '{name}' holds numbers that are not finite or too large for {kind}'s "
            "float16 scales"
        )
    return pack_blocks(kind, codes, narrow, least).reshape(rows.shape[0], -1)


def _require_finite(name: str, kind: GgmlType, blocks: Floats) -> None:
    if not np.isfinite(blocks).all():
        raise UnsupportedModelError(
            f"tensor '{name}' holds numbers that are not finite, which {kind} cannot represent"
        )


def _rounder(kind: GgmlType) -> Callable[[Floats], Rounded]:
    if kind == Q8_0:
        return _round_signed_8
    layout = LAYOUTS[kind]
    highest = (1 << layout.num_bits) - 1
    if layout.has_minimum:
        return lambda blocks: _round_with_minimum(blocks, highest)
    return lambda blocks: _round_signed(blocks, layout.offset)


def _round_signed(blocks: Floats, half: int) -> Rounded:
    """The element of largest magnitude gets the code -half, the end with one step more."""
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
    scale = largest / np.float32(-half)
    shifted = _scaled(blocks, scale) + np.float32(half + 0.5)
    codes = np.minimum(shifted.astype(np.uint8), 2 * half - 1).astype(np.int8) - np.int8(half)
    return codes, scale[:, 0], None


def _round_with_minimum(blocks: Floats, highest: int) -> Rounded:
    minimum = blocks.min(axis=1, keepdims=True)
    with np.errstate(over="ignore", invalid="ignore"):
        scale = (blocks.max(axis=1, keepdims=True) - minimum) / np.float32(highest)
        shifted = _scaled(blocks - minimum, scale) + np.float32(0.5)
    codes = np.minimum(shifted.astype(np.uint8), highest).astype(np.int8)
    return codes, scale[:, 0], minimum[:, 0]


def _round_signed_8(blocks: Floats) -> Rounded:
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    scaled = _scaled(blocks, scale)
    magnitude = np.abs(scaled)
    whole = np.floor(magnitude)
    whole += magnitude - whole >= np.float32(0.5)
    return np.copysign(whole, scaled).astype(np.int8), scale[:, 0], None


def _scaled(blocks: Floats, scale: Floats) -> Floats:
    """blocks / scale, by the reciprocal as ggml does; zero where that has no finite value."""
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
        inverse = np.float32(1) / scale
        usable = np.isfinite(inverse) & np.isfinite(scale)
        scaled: Floats = blocks * np.where(usable, inverse, np.float32(0))
    return np.where(usable, scaled, np.float32(0))
