"""How a linear's input is rounded before the product: what a scheme's words mean, in numbers.

The arithmetic is that of compressed-tensors' reference (fake quantization), in float32: a scale
from the largest magnitude, the quotient clamped and rounded to nearest with ties to even, and
multiplied by the scale again. Every row is rounded on its own.
"""

import math
from dataclasses import dataclass
from typing import Literal

from quant.format.errors import UnsupportedModelError
from quant.format.scheme import ActivationScheme, FloatScheme, PerGroup, PerTensor, Scheme
from quant.format.stored import StoredIntegers
from quant.format.tensor import QuantizedTensor, Weight

MX_GROUP = 32
"""The group size of the OCP microscaling formats, whose scales are powers of two."""


@dataclass(frozen=True)
class InputRounding:
    """One way to round rows of float32; linears that ask for equal ones share the rounded input.

    group: columns that share a scale; 0 means the whole row. scales: what a scale is rounded to
    itself. fixed: the scale of every row. divisor: what e4m3 scales are divided by. span: how many
    scales of int8 the largest magnitude is.
    """

    numbers: Literal["int8", "e4m3", "e2m1"]
    group: int = 0
    scales: Literal["float", "e8m0", "e4m3"] = "float"
    fixed: float | None = None
    divisor: float | None = None
    span: float = 127.5


def input_rounding(name: str, weight: Weight | StoredIntegers) -> InputRounding | None:
    """What the scheme of the loaded weight `name` asks for, None where it asks for nothing.

    Raises UnsupportedModelError for a stored scale that is missing, or not a positive number.
    """
    if not isinstance(weight, QuantizedTensor | StoredIntegers):
        return None
    activation = weight.scheme.activation
    if activation is None:
        return None
    group = activation.granularity.size if isinstance(activation.granularity, PerGroup) else 0
    if not activation.dynamic:
        return InputRounding(activation.numbers, group, fixed=_stored(name, weight, activation))
    if group == 0:
        return InputRounding(activation.numbers)
    if activation.numbers == "e2m1" and weight.input_scale is not None:
        divisor = _stored(name, weight, activation)
        return InputRounding("e2m1", group, "e4m3", divisor=divisor)
    is_mx = activation.numbers != "int8" and group == MX_GROUP
    return InputRounding(activation.numbers, group, "e8m0" if is_mx else "float")


def check_input(name: str, scheme: Scheme) -> None:
    """Raises UnsupportedModelError where rows of a step could not be rounded on their own."""
    activation = None if isinstance(scheme, FloatScheme) else scheme.activation
    if activation is None or not isinstance(activation.granularity, PerTensor):
        return
    if activation.dynamic:
        raise UnsupportedModelError(
            f"tensor {name} asks for one input scale for all tokens of a step ({activation}), with "
            "which an answer would depend on its neighbours; quantize with a scale per token"
        )


def _stored(
    name: str, weight: QuantizedTensor | StoredIntegers, activation: ActivationScheme
) -> float:
    scale = weight.input_scale
    if scale is None or not math.isfinite(scale) or scale <= 0:
        raise UnsupportedModelError(
            f"tensor {name} is to round its input as {activation}, but the input scale stored with "
            f"it is {scale}, not a positive number; calibrate the checkpoint again"
        )
    return float(scale)
