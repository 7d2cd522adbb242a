"""One digest for the numbers of a tensor, whatever container they lie in.

Canonical form, hashed part by part with SHA-256, and the digests of the parts again:

- shape: the logical one, as decimal numbers
- integers: int16 little endian [out, in], code minus zero point, so that a container which has no
  zero points and one which counts codes from 0 hash alike; of codebooks the stored bits
- scales, then minimums: the columns at which any row's number changes, int32 [runs], and float32
  [out, runs] of the numbers there, so that a scale repeated for each block hashes as one
- of floats instead: float32 little endian, which every 16-bit type fits

How inputs are rounded is no part of it.
"""

import hashlib
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from quant.format.scheme import CodebookScheme
from quant.format.tensor import QuantizedTensor, Weight

_PART_ELEMENTS = 1 << 20


def tensor_digest(weight: Weight) -> str:
    """Hexadecimal SHA-256, equal exactly for the same numbers in the same shape."""
    parts = [hashlib.sha256(" ".join(map(str, weight.shape)).encode()).digest()]
    if isinstance(weight, QuantizedTensor):
        kind = weight.scheme.codebook if isinstance(weight.scheme, CodebookScheme) else "integers"
        parts += [kind.encode(), _integers(weight)]
        parts.append(_runs(weight, weight.effective_scale()))
        if weight.minimum is not None:
            parts.append(_runs(weight, weight.minimum.astype(np.float32)))
    else:
        parts += [b"floats", _floats(weight)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _integers(weight: QuantizedTensor) -> bytes:
    sha, (rows, columns) = hashlib.sha256(), weight.shape
    step = max(1, _PART_ELEMENTS // max(1, columns))
    for start in range(0, rows, step):
        part = weight.integers(slice(start, start + step))
        sha.update(np.ascontiguousarray(part, "<i2").data)
    return sha.digest()


def _runs(weight: QuantizedTensor, numbers: npt.NDArray[np.float32]) -> bytes:
    """numbers: float32 [out, groups]."""
    group = weight.column_groups()
    starts = np.flatnonzero(np.diff(group, prepend=-1))
    along = numbers[:, group[starts]]
    bits = along.view(np.uint32)
    kept = np.ones(len(starts), np.bool_)
    kept[1:] = np.any(bits[:, 1:] != bits[:, :-1], axis=0)
    sha = hashlib.sha256(starts[kept].astype("<i4").data)
    sha.update(np.ascontiguousarray(along[:, kept], dtype="<f4").data)
    return sha.digest()


def _floats(weight: npt.NDArray[Any]) -> bytes:
    sha, flat = hashlib.sha256(), weight.reshape(-1)
    for start in range(0, math.prod(weight.shape), _PART_ELEMENTS):
        sha.update(flat[start : start + _PART_ELEMENTS].astype("<f4").data)
    return sha.digest()
