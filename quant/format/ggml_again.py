"""Integers of other schemes put into ggml's blocks: exactly where they fit, else rounded again.

Rounding again starts from the scales that the integers have. So a block of nested scales keeps
nearly all codes, and what is lost is that its scales have six or eight bits.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from quant.format.errors import UnsupportedModelError
from quant.format.ggml_fp4 import holds
from quant.format.ggml_grid import Floats, Levels
from quant.format.ggml_search import EFFORTS, Known, round_blocks
from quant.format.gguf_blocks import decode, encode
from quant.format.gguf_rounding import PLAINLY_ROUNDED, round_to
from quant.format.gguf_types import MXFP4, NVFP4, TYPE_BY_NAME, GgmlType
from quant.format.scheme import FloatScheme, IntScheme, Scheme
from quant.format.tensor import FloatArray, QuantizedTensor, Weight

_PART_ELEMENTS = 1 << 20


def exact_blocks(name: str, kind: GgmlType, weight: QuantizedTensor) -> QuantizedTensor | None:
    """The same numbers as blocks of `kind`; None where these cannot hold them."""
    try:
        data = encode(name, kind, weight)
    except UnsupportedModelError:
        return None
    tensor = decode(kind, data, weight.shape)
    assert isinstance(tensor, QuantizedTensor)
    return tensor


def rounded_again(name: str, kind: GgmlType, weight: QuantizedTensor) -> QuantizedTensor:
    """The values of `weight` rounded to `kind`, on scales searched for around its own.

    Rows do not influence each other. Raises UnsupportedModelError naming the tensor where a value
    is not finite or too large.
    """
    if kind.name not in EFFORTS:
        return _plainly_rounded(name, kind, weight.dequantize())
    return round_blocks(name, kind, weight.dequantize(), known=known_scales(kind, weight))


def block_type(scheme: Scheme) -> GgmlType | None:
    """The type whose blocks a scheme is read from; None for one that is no type of ggml's."""
    if isinstance(scheme, FloatScheme):
        return None
    if scheme.ggml_type is not None:
        return TYPE_BY_NAME[scheme.ggml_type]
    return next((kind for kind in (MXFP4, NVFP4) if holds(kind, scheme)), None)


def float_encoders(kind: GgmlType) -> list[Callable[[FloatArray], QuantizedTensor]]:
    """Every way in which a build rounds floats to `kind`: plainly, as ggml's reference does, and
    on searched scales. Rows do not influence each other in any of them."""
    found: list[Callable[[FloatArray], QuantizedTensor]] = []
    if kind in PLAINLY_ROUNDED:
        found.append(partial(_plainly_rounded, "", kind))
    if kind.name in EFFORTS:
        found.append(partial(round_blocks, "", kind))
    return found


def relative_rms(reference: Weight, stored: Weight) -> float:
    """sqrt(sum((stored - reference)**2) / sum(reference**2)) of two of the same shape; 0 where the
    reference is all zeros."""
    lost = total = 0.0
    rows = len(reference.codes) if isinstance(reference, QuantizedTensor) else len(reference)
    step = max(1, _PART_ELEMENTS * rows // max(1, math.prod(reference.shape)))
    for start in range(0, rows, step):
        picked = np.arange(start, min(rows, start + step), dtype=np.intp)
        wide = _floats(reference, picked)
        total += float(np.square(wide, dtype=np.float64).sum())
        lost += float(np.square(_floats(stored, picked) - wide, dtype=np.float64).sum())
    return math.sqrt(lost / total) if total else 0.0


def _plainly_rounded(name: str, kind: GgmlType, weight: FloatArray) -> QuantizedTensor:
    tensor = decode(kind, round_to(name, kind, weight), weight.shape)
    assert isinstance(tensor, QuantizedTensor)
    return tensor


def _floats(weight: Weight, rows: npt.NDArray[np.intp]) -> Floats:
    if isinstance(weight, QuantizedTensor):
        return weight.take_rows(rows).dequantize()
    return np.asarray(weight[rows], dtype=np.float32)


def known_scales(kind: GgmlType, weight: QuantizedTensor) -> Known | None:
    """The weight's own grid by groups of `kind`; None where that could not hold its codes."""
    levels, columns = Levels(kind), weight.shape[1]
    if not isinstance(weight.scheme, IntScheme) or levels.codebook:
        return None
    if 1 << weight.scheme.num_bits > levels.highest - levels.lowest + 1:
        return None
    groups = weight.column_groups().reshape(columns // levels.group, levels.group)
    if (groups != groups[:, :1]).any():
        return None
    return _grid(weight, groups[:, 0], levels)


def _grid(weight: QuantizedTensor, of_group: npt.NDArray[np.int32], levels: Levels) -> Known:
    scale: Floats = weight.effective_scale()[:, of_group]
    scale = np.where(scale == 0, np.float32(1), scale)
    if not levels.has_minimum:
        return scale, np.zeros_like(scale)
    least: Floats = np.zeros_like(scale)
    if weight.minimum is not None:
        least = weight.minimum.astype(np.float32)[:, of_group]
    else:
        assert isinstance(weight.scheme, IntScheme)
        # The minimum is the value of the code at the end where values are least.
        end = np.where(scale > 0, np.float32(weight.scheme.qmin), np.float32(weight.scheme.qmax))
        if weight.zero_point is not None:
            end = end - weight.zero_point.astype(np.float32)[:, of_group]
        least = scale * end
    return np.abs(scale), least if levels.nested is None else np.minimum(least, np.float32(0))
