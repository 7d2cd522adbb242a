"""How much memory a model's weights take, known from headers."""

from math import prod
from typing import TYPE_CHECKING

from quant.format.scheme import FloatScheme

if TYPE_CHECKING:
    from compile.model import Model


def held_bytes(model: "Model", name: str) -> int:
    """Bytes of one tensor as executors hold it: about as its scheme stores it, and an eighth more
    for scales."""
    bits = prod(model.weights.shape(name)) * model.weights.scheme(name).num_bits
    return bits // 8 if isinstance(model.weights.scheme(name), FloatScheme) else bits * 9 // 64


def weight_bytes(model: "Model") -> int:
    """Bytes of all tensors."""
    return sum(held_bytes(model, name) for name in model.weights.names())
