"""Random rotations made of Hadamard matrices: they spread what is large over all channels."""

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from quant.transforms.hadamard import factors, hadamard


@dataclass(frozen=True)
class Rotation:
    """R = D H / sqrt(block): random signs, then a Hadamard matrix of `block` rows, repeated along
    the diagonal where `size` is no order of a known one. Orthogonal: R R^T = I.

    signs: [size] of 1 and -1. orders: of the matrices whose Kronecker product H is.
    """

    signs: npt.NDArray[np.int8]
    orders: tuple[int, ...]

    @property
    def block(self) -> int:
        """Channels that are mixed with each other."""
        return int(np.prod(self.orders))

    def columns(self, matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """matrix @ R for float64 [..., size].

        Sums are of signed entries alone, scaled once at the end: exact in float64 for products of
        two 16-bit numbers, whatever order a library sums in.
        """
        mixed = matrix * self.signs
        after = self.block
        for order in self.orders:
            after //= order
            if after == 1:
                mixed = mixed.reshape(-1, order) @ _wide(order)
            else:
                mixed = np.matmul(_wide(order).T, mixed.reshape(-1, order, after))
        scaled: npt.NDArray[np.float64] = mixed.reshape(matrix.shape) / np.sqrt(self.block)
        return scaled

    def rows(self, matrix: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """R^T @ matrix for float64 [size, ...]."""
        return np.moveaxis(self.columns(np.moveaxis(matrix, 0, -1)), -1, 0)


def random_rotation(size: int, seed: int, stream: int) -> Rotation:
    """The rotation of `size` channels that `seed` and the number `stream` determine; no other
    random state is read or changed."""
    random = np.random.Generator(np.random.PCG64([seed, stream]))
    signs = random.integers(0, 2, size, dtype=np.int8) * 2 - 1
    return Rotation(signs.astype(np.int8), factors(size))


@cache
def _wide(order: int) -> npt.NDArray[np.float64]:
    signs = hadamard(order)
    assert signs is not None
    return signs.astype(np.float64)
