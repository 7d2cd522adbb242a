"""Hadamard matrices: entries of 1 and -1, rows orthogonal to each other.

Sylvester's doubling, and Paley's two constructions from quadratic residues (Paley, "On Orthogonal
Matrices", 1933), over the integers modulo a prime, and over the field of p*p elements.
"""

from functools import cache
from math import isqrt

import numpy as np
import numpy.typing as npt

Signs = npt.NDArray[np.int8]
_LARGEST_BASE = 512
_PAIR: Signs = np.array([[1, 1], [1, -1]], dtype=np.int8)


def hadamard(order: int) -> Signs | None:
    """int8 [order, order] with H H^T = order * I, None where no known construction gives one."""
    if order in (1, 2):
        return _PAIR[:order, :order]
    if order < 1 or order % 4:
        return None
    paley = _paley(order)
    if paley is not None:
        return paley
    half = hadamard(order // 2)
    return None if half is None else _product(_PAIR, half)


@cache
def factors(size: int) -> tuple[int, ...]:
    """Orders of Hadamard matrices whose Kronecker product has `size` rows, or, where there is none,
    the largest divisor of `size` rows: it is then used block by block. Small ones come first.
    """
    for block in sorted((d for d in range(1, size + 1) if size % d == 0), reverse=True):
        found = _factored(block)
        if found is not None:
            return found
    raise AssertionError("a matrix of order 1 divides everything")


def _factored(size: int) -> tuple[int, ...] | None:
    """The smallest base whose cofactor is a power of two, with twos of at most 64 each."""
    twos = size & -size
    base = size // twos
    while base <= min(size, _LARGEST_BASE):
        if hadamard(base) is not None:
            return (*([base] if base > 1 else []), *_powers_of_two(size // base)) or (1,)
        base *= 2
    return None


def _powers_of_two(size: int) -> list[int]:
    parts = []
    while size > 1:
        part = min(size, 64)
        parts.append(part)
        size //= part
    return parts


def _paley(order: int) -> Signs | None:
    """Type I from a prime order - 1, type II from order / 2 - 1, a prime or the square of one."""
    if order % 4 == 0 and _is_prime(order - 1):
        core = _bordered(_differences(order - 1), symmetric=False)
        one: Signs = np.eye(order, dtype=np.int8)
        return core + one
    half = order // 2
    if half % 4 == 2 and (_is_prime(half - 1) or _is_prime_square(half - 1)):
        core = _bordered(_differences(half - 1), symmetric=True)
        minus: Signs = np.array([[1, -1], [-1, -1]], dtype=np.int8)
        diagonal: Signs = np.eye(half, dtype=np.int8)
        return _product(core, _PAIR) + _product(diagonal, minus)
    return None


def _bordered(core: Signs, symmetric: bool) -> Signs:
    """The conference matrix of Jacobsthal's matrix."""
    size = len(core) + 1
    matrix = np.zeros((size, size), dtype=np.int8)
    matrix[0, 1:] = 1
    matrix[1:, 0] = 1 if symmetric else -1
    matrix[1:, 1:] = core
    return matrix


def _product(left: Signs, right: Signs) -> Signs:
    """Kronecker's product."""
    size = len(left) * len(right)
    return (left[:, None, :, None] * right[None, :, None, :]).reshape(size, size)


def _differences(count: int) -> Signs:
    """[count, count]: the quadratic character of the difference of every two field elements."""
    if _is_prime(count):
        index = np.arange(count)
        found: Signs = _character(count)[(index[:, None] - index) % count]
        return found
    p = isqrt(count)
    character = _character(p)
    high, low = np.arange(count) // p, np.arange(count) % p
    a, b = low[:, None] - low, high[:, None] - high
    # a + b*sqrt(d), d no square: a square exactly when its norm is one in the field of p elements.
    d = int(np.flatnonzero(character == -1)[0])
    of_norm: Signs = character[(a * a - d * b * b) % p]
    return of_norm


def _character(p: int) -> Signs:
    """[p]: 1 for squares modulo p, -1 for others, 0 for 0."""
    character = np.full(p, -1, dtype=np.int8)
    character[np.arange(1, p) ** 2 % p] = 1
    character[0] = 0
    return character


def _is_prime(number: int) -> bool:
    return number > 2 and all(number % d for d in range(2, isqrt(number) + 1))


def _is_prime_square(number: int) -> bool:
    return isqrt(number) ** 2 == number and _is_prime(isqrt(number))
