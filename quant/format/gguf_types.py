"""ggml's number types: how many elements share a block and how many bytes it takes."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class GgmlType:
    """One number type. `block` consecutive elements of a row are stored in `block_bytes` bytes."""

    name: str
    id: int
    block: int
    block_bytes: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.block_bytes / self.block

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of `shape` (numpy order); the last dimension is whole blocks."""
        return math.prod(shape) // self.block * self.block_bytes

    def __str__(self) -> str:
        return self.name


F32 = GgmlType("F32", 0, 1, 4)
F16 = GgmlType("F16", 1, 1, 2)
BF16 = GgmlType("BF16", 30, 1, 2)
Q4_0 = GgmlType("Q4_0", 2, 32, 18)
Q4_1 = GgmlType("Q4_1", 3, 32, 20)
Q5_0 = GgmlType("Q5_0", 6, 32, 22)
Q5_1 = GgmlType("Q5_1", 7, 32, 24)
Q8_0 = GgmlType("Q8_0", 8, 32, 34)
Q2_K = GgmlType("Q2_K", 10, 256, 84)
Q3_K = GgmlType("Q3_K", 11, 256, 110)
Q4_K = GgmlType("Q4_K", 12, 256, 144)
Q5_K = GgmlType("Q5_K", 13, 256, 176)
Q6_K = GgmlType("Q6_K", 14, 256, 210)
IQ4_NL = GgmlType("IQ4_NL", 20, 32, 18)
IQ4_XS = GgmlType("IQ4_XS", 23, 256, 136)
MXFP4 = GgmlType("MXFP4", 39, 32, 17)
NVFP4 = GgmlType("NVFP4", 40, 64, 36)

ALL_TYPES = (
    *(F32, F16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0),
    GgmlType("Q8_1", 9, 32, 40),
    *(Q2_K, Q3_K, Q4_K, Q5_K, Q6_K),
    GgmlType("Q8_K", 15, 256, 292),
    GgmlType("IQ2_XXS", 16, 256, 66),
    GgmlType("IQ2_XS", 17, 256, 74),
    GgmlType("IQ3_XXS", 18, 256, 98),
    GgmlType("IQ1_S", 19, 256, 50),
    IQ4_NL,
    GgmlType("IQ3_S", 21, 256, 110),
    GgmlType("IQ2_S", 22, 256, 82),
    IQ4_XS,
    GgmlType("I8", 24, 1, 1),
    GgmlType("I16", 25, 1, 2),
    GgmlType("I32", 26, 1, 4),
    GgmlType("I64", 27, 1, 8),
    GgmlType("F64", 28, 1, 8),
    GgmlType("IQ1_M", 29, 256, 56),
    BF16,
    GgmlType("TQ1_0", 34, 256, 54),
    GgmlType("TQ2_0", 35, 256, 66),
    *(MXFP4, NVFP4),
    GgmlType("Q1_0", 41, 128, 18),
)

TYPE_BY_ID = {kind.id: kind for kind in ALL_TYPES}
TYPE_BY_NAME = {kind.name: kind for kind in ALL_TYPES}
