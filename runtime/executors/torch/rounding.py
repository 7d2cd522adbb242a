"""Rounding of a linear's input, and of keys and values, in plain PyTorch arithmetic."""

from collections.abc import Callable

from torch import (
    Tensor,
    bfloat16,
    finfo,
    float8_e4m3fn,
    float16,
    float32,
    frexp,
    nan,
    ones_like,
    tensor,
    where,
)
from torch.nn.functional import pad

from compile.input_rounding import InputRounding
from runtime.kv_cache import KvCacheType

LARGEST = {"int8": 127.0, "e4m3": 448.0, "e2m1": 6.0}
LOWEST = {"int8": -128.0, "e4m3": -448.0, "e2m1": -6.0}
LARGEST_EXPONENT = {"e4m3": 8, "e2m1": 2}
SMALLEST_SCALE = finfo(float32).eps
"""Stands in for a scale of 0, that of a group of zeros."""
SMALLEST_E4M3_SCALE = 0.125


def round_input(
    x: Tensor, rounding: InputRounding, max_ranks: Callable[[Tensor], Tensor] | None = None
) -> Tensor:
    """x [rows, columns], rounded in float32 whatever its dtype, which the result has.

    max_ranks: the largest over the processes of which each has some columns of the rows; groups lie
    in one of them, whole rows do not. A group whose largest magnitude is not finite becomes NaN;
    under a fixed scale infinities saturate, and NaN stays NaN alone.
    """
    columns = x.shape[1]
    size = rounding.group or columns
    groups = pad(x.to(float32), (0, -columns % size)).view(len(x), -(-columns // size), size)
    largest = groups.abs().amax(-1, keepdim=True)
    if max_ranks is not None and rounding.group == 0 and rounding.fixed is None:
        largest = max_ranks(largest)
    scale = _scale(largest, rounding)
    rounded = _round(groups / scale, rounding.numbers) * scale
    return rounded.flatten(1)[:, :columns].to(x.dtype)


def round_cached(x: Tensor, cache: KvCacheType) -> Tensor:
    """Keys or values x [tokens, kv_heads, head_dim] as a cache of that type holds them; in float32
    whatever x's dtype, which the result has."""
    if cache == "float32":
        return x
    numbers = x.to(float32)
    if cache == "float16":
        return numbers.clamp(-65504, 65504).to(float16).to(x.dtype)
    if cache == "bfloat16":
        return numbers.to(bfloat16).to(x.dtype)
    largest = numbers.abs().amax(-1, keepdim=True)
    scale = (largest / 127).clamp(min=finfo(float32).tiny)
    codes = (numbers / where(largest.isfinite(), scale, nan)).clamp(-127, 127).round()
    return (codes * scale).to(x.dtype)


def _scale(largest: Tensor, rounding: InputRounding) -> Tensor:
    if rounding.fixed is not None:
        return ones_like(largest) * rounding.fixed
    if rounding.scales == "e8m0":
        scale = _power_of_two(largest, LARGEST_EXPONENT[rounding.numbers])
    else:
        span = LARGEST[rounding.numbers] - LOWEST[rounding.numbers]
        scale = largest / (span / 2)
        if rounding.divisor is not None:
            divisor = tensor(rounding.divisor, dtype=float32, device=largest.device)
            scale = (divisor * scale).clamp(max=LARGEST["e4m3"]).to(float8_e4m3fn).to(float32)
            scale = where(scale == 0, SMALLEST_E4M3_SCALE, scale) / divisor
        scale = where(scale == 0, SMALLEST_SCALE, scale)
    return where(largest.isfinite(), scale, nan)


def _power_of_two(largest: Tensor, largest_exponent: int) -> Tensor:
    """The exponent of `largest` rounded to one bit behind the point, so that 1.75 * 2**e counts as
    2 ** (e + 1); minus the exponent of the largest number, within what e8m0 holds."""
    mantissa, exponent = frexp(largest)  # mantissa in [0.5, 1), or 0
    floor = exponent - 1 + (mantissa >= 0.875).to(exponent.dtype)
    floor = where(largest == 0, -127, floor)
    clamped = (floor - largest_exponent).clamp(min=-127)
    return ones_like(largest).ldexp(clamped)


def _round(x: Tensor, numbers: str) -> Tensor:
    x = x.clamp(LOWEST[numbers], LARGEST[numbers])
    if numbers == "int8":
        return x.round()
    if numbers == "e4m3":
        return x.to(float8_e4m3fn).to(float32)
    # e2m1: steps of 1/2 below 2, of 1 below 4, of 2 up to 6.
    size = x.abs()
    step = where(size < 2, 0.5, where(size < 4, 1.0, 2.0))
    return (x / step).round() * step
