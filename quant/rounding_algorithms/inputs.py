"""Stored scales of a linear's inputs, from the largest magnitude that calibration saw."""

from quant.format.codebooks import LARGEST
from quant.format.scheme import CodebookScheme, QuantizedScheme

_INT8_REACH = 127.5
_LARGEST_E4M3 = 448.0


def stores_input_scale(scheme: QuantizedScheme) -> bool:
    """Whether a server needs a number from calibration to round the inputs."""
    activation = scheme.activation
    if activation is None:
        return False
    return not activation.dynamic or _is_nvfp4(scheme)


def input_scale(scheme: QuantizedScheme, absmax: float) -> float:
    """The multiplier of inputs rounded to codes; for NVFP4 the divisor of its group scales, as its
    weights have one. 1 where every input was 0."""
    activation = scheme.activation
    assert activation is not None
    if absmax == 0.0:
        return 1.0
    if _is_nvfp4(scheme):
        return _LARGEST_E4M3 * LARGEST["e2m1"] / absmax
    return absmax / (_INT8_REACH if activation.numbers == "int8" else _LARGEST_E4M3)


def _is_nvfp4(scheme: QuantizedScheme) -> bool:
    activation = scheme.activation
    four_bit = activation is not None and activation.numbers == "e2m1"
    return four_bit and isinstance(scheme, CodebookScheme) and scheme.scales == "e4m3"
