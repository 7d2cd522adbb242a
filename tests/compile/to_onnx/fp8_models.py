"""Tiny models whose linears are stored in FP8."""

from typing import Any

import ml_dtypes
import numpy as np

from compile.model import Model
from quant.format import codebooks
from quant.format.scheme import ActivationScheme, CodebookScheme, PerBlock, PerChannel, PerTensor
from quant.format.tensor import QuantizedTensor
from tests.tiny import tiny_model

LARGEST = codebooks.LARGEST["e4m3"]
BLOCK: dict[str, Any] = {"hidden_size": 256, "intermediate": 384, "layers": 1}
FP8_SCHEMES: dict[str, tuple[CodebookScheme, dict[str, Any]]] = {
    "channel": (CodebookScheme("e4m3", PerChannel()), {}),
    "tensor": (CodebookScheme("e4m3", PerTensor()), {}),
    "dynamic": (CodebookScheme("e4m3", PerChannel(), activation=ActivationScheme("e4m3")), {}),
    "block": (CodebookScheme("e4m3", PerBlock(128, 128)), BLOCK),
}


def fp8_weight(values: Any, scheme: CodebookScheme) -> QuantizedTensor:
    """A matrix rounded to FP8, the largest number of each part at the end of its range."""
    floats = values.astype(np.float32)
    rows, columns = floats.shape
    grain = scheme.granularity
    high, wide = {PerChannel: (1, columns), PerTensor: (rows, columns)}.get(type(grain), (128, 128))
    parts, tiles = -(-rows // high), -(-columns // wide)
    scale = np.array(
        [
            [np.abs(floats[i * high : (i + 1) * high, j * wide : (j + 1) * wide]).max() / LARGEST]
            for i in range(parts)
            for j in range(tiles)
        ],
        np.float32,
    ).reshape(parts, tiles)
    each = np.repeat(np.repeat(scale, high, 0)[:rows], wide, 1)[:, :columns]
    codes = (floats / each).astype(ml_dtypes.float8_e4m3fn).view(np.int8)
    return QuantizedTensor(scheme, codes, scale)


def fp8_model(name: str, **options: Any) -> Model:
    scheme, sizes = FP8_SCHEMES[name]
    plain = tiny_model(**sizes, **options)
    linears = [n for n in plain.program.weights() if "_proj.weight" in n]
    weights = {n: fp8_weight(plain.weights.load(n), scheme) for n in linears}
    return tiny_model(weights=weights, **sizes, **options)
