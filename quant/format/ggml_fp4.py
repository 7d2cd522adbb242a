"""ggml's blocks of 4-bit floats: MXFP4 and NVFP4, the bits of OCP's and NVIDIA's formats repacked.

    MXFP4  e8m0 scale,       16 bytes: element j low nibble, j + 16 high        of 32 elements
    NVFP4  4 x ue4m3 scale,  4 x 8 bytes: of each 16, j low nibble, j + 8 high  of 64 elements

Values are e2m1 codes times the scale; NVFP4's tensor has a float32 multiplier besides, in a tensor
of its own. Source: ggml-common.h (block_mxfp4, block_nvfp4) and quantize_row_mxfp4_ref of
ggml-quants.c in github.com/ggml-org/llama.cpp.
"""

from dataclasses import replace
from itertools import pairwise

import ml_dtypes
import numpy as np
import numpy.typing as npt

from quant.format.codebooks import E2M1_MAGNITUDES
from quant.format.errors import UnsupportedModelError
from quant.format.gguf_types import MXFP4, NVFP4, GgmlType
from quant.format.scheme import CodebookScheme, PerGroup, QuantizedScheme
from quant.format.tensor import QuantizedTensor

Bytes = npt.NDArray[np.uint8]
Codes = npt.NDArray[np.int8]

SCHEMES = {
    MXFP4: CodebookScheme("e2m1", PerGroup(32), scales="e8m0"),
    NVFP4: CodebookScheme("e2m1", PerGroup(16), scales="e4m3"),
}
_SCALES = {MXFP4: ml_dtypes.float8_e8m0fnu, NVFP4: ml_dtypes.float8_e4m3fn}
_MIDDLES = [(a + b) / 2 for a, b in pairwise(E2M1_MAGNITUDES)]


def holds(kind: GgmlType, scheme: QuantizedScheme) -> bool:
    """Whether blocks of `kind` hold the codes and scales of a scheme as they are."""
    own = SCHEMES.get(kind)
    return (
        own is not None
        and isinstance(scheme, CodebookScheme)
        and (scheme.codebook, scheme.granularity, scheme.scales)
        == (own.codebook, own.granularity, own.scales)
    )


def decode_fp4(kind: GgmlType, data: Bytes, shape: tuple[int, int]) -> QuantizedTensor:
    """A weight of `shape` [out, in]; NVFP4's has the global scale 1."""
    group, groups = _sizes(kind)
    blocks = data.reshape(-1, kind.block_bytes)
    nibbles = blocks[:, groups:].reshape(-1, groups, group // 2)
    codes = np.concatenate([nibbles & np.uint8(15), nibbles >> np.uint8(4)], axis=2)
    scale = np.ascontiguousarray(blocks[:, :groups]).view(_SCALES[kind])
    return QuantizedTensor(
        SCHEMES[kind],
        codes.reshape(shape).view(np.int8),
        scale.reshape(shape[0], -1),
        global_scale=1.0 if kind == NVFP4 else None,
    )


def encode_fp4(name: str, kind: GgmlType, tensor: QuantizedTensor) -> Bytes:
    """uint8 [out, bytes per row]: the same codes and scales; a global scale is not part of it.

    Raises UnsupportedModelError naming a tensor whose columns are in another order or whose scales
    have a sign, which ggml does not read.
    """
    rows, columns = tensor.shape
    if tensor.group_index is not None:
        raise UnsupportedModelError(f"tensor '{name}' has groups in an order that {kind} has not")
    scale = np.ascontiguousarray(tensor.scale).view(np.uint8)
    if kind == NVFP4 and (scale > 0x7E).any():
        raise UnsupportedModelError(f"tensor '{name}' has scales below 0 or none that {kind} reads")
    return pack_fp4(kind, tensor.codes.reshape(-1, columns), scale).reshape(rows, -1)


def pack_fp4(kind: GgmlType, codes: Codes, scale: Bytes) -> Bytes:
    """uint8 [blocks, block_bytes] of codes [rows, in] and the bytes of their scales."""
    group, groups = _sizes(kind)
    halves = codes.view(np.uint8).reshape(-1, groups, 2, group // 2)
    nibbles: Bytes = halves[:, :, 0] | halves[:, :, 1] << np.uint8(4)
    return np.concatenate([scale.reshape(-1, groups), nibbles.reshape(len(nibbles), -1)], axis=1)


def round_mxfp4(blocks: npt.NDArray[np.float32]) -> Bytes:
    """uint8 [blocks, 17] of float32 [blocks, 32], the bytes of ggml's reference: the scale is that
    power of two which puts the largest magnitude between 4 and 8, ties go to the smaller value."""
    largest = np.abs(blocks).max(axis=1).astype(np.float64)
    with np.errstate(divide="ignore"):
        power = np.floor(np.log2(largest).astype(np.float32))
    exponent = np.where(largest > 0, np.clip(power - 2 + 127, 0, 254), 0).astype(np.uint8)
    scale = np.ldexp(np.float64(1), exponent.astype(np.int32) - 127)
    steps = np.abs(blocks) / scale[:, None]
    codes = np.searchsorted(_MIDDLES, steps).astype(np.uint8)
    codes |= ((blocks < 0) & (codes > 0)).astype(np.uint8) << np.uint8(3)
    return pack_fp4(MXFP4, codes.view(np.int8), exponent)


def factor_of(tensor: QuantizedTensor) -> np.float32:
    """What every number of NVFP4 blocks is multiplied by: float32's nearest to one over the global
    scale, which is a divisor."""
    return np.float32(1) / np.float32(1 if tensor.global_scale is None else tensor.global_scale)


def with_factor(tensor: QuantizedTensor, factor: np.float32) -> QuantizedTensor:
    """The inverse: NVFP4 blocks with their factor. Where it came from a global scale, that may be
    off by one part in 2**23 by now."""
    return replace(tensor, global_scale=float(np.float32(1) / factor))


def _sizes(kind: GgmlType) -> tuple[int, int]:
    """Elements of a group, and groups of a block."""
    group = SCHEMES[kind].group_size(kind.block)
    return group, kind.block // group
