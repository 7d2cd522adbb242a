"""Rounding and functions that several kernels share."""

import torch
import triton
import triton.language as tl

SMALLEST_SCALE = torch.finfo(torch.float32).eps
"""Stands in for the scale of a row of zeros."""

_TO_INTEGER = tl.constexpr(12582912.0)
"""1.5 * 2**23: adding it to a float32 of small magnitude drops the fraction, ties to even."""


@triton.jit
def round_to_int8(x):
    """Nearest integer, ties to even, within -128 .. 127."""
    clamped = tl.minimum(tl.maximum(x, -128.0), 127.0)
    return ((clamped + _TO_INTEGER) - _TO_INTEGER).to(tl.int8)


_EXPONENT = tl.constexpr(0x7F800000)
_SMALLEST_NORMAL = tl.constexpr(121 << 23)
"""The exponent of e4m3's smallest normal number, 2**-6, as float32 has it."""
_TWENTY_HIGHER = tl.constexpr(20 << 23)
"""float32 keeps 23 bits behind the point, e4m3 keeps 3."""


@triton.jit
def round_to_e4m3(x):
    """float32 on the grid of e4m3, ties to even, within -448 .. 448: casting it loses nothing,
    whatever the cast does with ties; NaN stays."""
    clamped = tl.minimum(tl.maximum(x, -448.0), 448.0)
    exponent = clamped.to(tl.int32, bitcast=True) & _EXPONENT
    power = tl.maximum(exponent, _SMALLEST_NORMAL) + _TWENTY_HIGHER
    large = 1.5 * power.to(tl.float32, bitcast=True)
    return tl.where(x != x, x, (clamped + large) - large)


@triton.jit
def store_rounded(
    values, largest, place, scale, inside, INTEGERS: tl.constexpr, SMALLEST: tl.constexpr
):
    """One row, whose largest magnitude is given: its codes, and the number that they are multiplied
    by, which is NaN where one of them is. Division is that of IEEE 754, without which a tie could
    fall to the other side."""
    step = tl.div_rn(largest, 127.5 if INTEGERS else 448.0)
    step = tl.where(step == 0.0, SMALLEST, step)
    wrong = tl.max((values != values).to(tl.int32), axis=0)
    step = tl.where(wrong > 0, float("nan"), step)
    quotient = tl.where(step == step, tl.div_rn(values, step), 0.0)
    codes = round_to_int8(quotient) if INTEGERS else round_to_e4m3(quotient)
    tl.store(place, codes.to(place.dtype.element_ty), mask=inside)
    tl.store(scale, step)


@triton.jit
def tanh(x):
    """Through the sigmoid, which does not overflow on either side."""
    return 2.0 * tl.sigmoid(2.0 * x) - 1.0
