"""The values that codes of a codebook stand for, both ways.

Sources: OCP "8-bit Floating Point Specification" (e4m3, without infinities), OCP "Microscaling
Formats (MX) Specification" v1.0, 5.3 (e2m1), ggml-common.h (kvalues_iq4nl).
"""

import ml_dtypes
import numpy as np
import numpy.typing as npt

from quant.format.scheme import Codebook

E2M1_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
IQ4_NL_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
LARGEST: dict[Codebook, float] = {"e4m3": 448.0, "e2m1": 6.0, "iq4_nl": 127.0}
"""The largest magnitude that a codebook holds."""


def _table(codebook: Codebook) -> npt.NDArray[np.float32]:
    """float32: the value of each code; NaN for the two codes of e4m3 that are none."""
    if codebook == "e4m3":
        values = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)
        return np.asarray(values, dtype=np.float32)
    if codebook == "iq4_nl":
        return np.array(IQ4_NL_VALUES, dtype=np.float32)
    magnitudes = np.array(E2M1_MAGNITUDES, dtype=np.float32)
    return np.concatenate([magnitudes, -magnitudes])


_TABLES: dict[Codebook, npt.NDArray[np.float32]] = {
    name: _table(name) for name in ("e4m3", "e2m1", "iq4_nl")
}


def codebook_values(codebook: Codebook) -> npt.NDArray[np.float32]:
    """float32 [256] or [16]: the value of each code, by its bits. Do not write to it."""
    return _TABLES[codebook]


def decode_codebook(codebook: Codebook, codes: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
    """float32 of the shape of `codes`, which hold the stored bits."""
    return _TABLES[codebook][codes.view(np.uint8)]
