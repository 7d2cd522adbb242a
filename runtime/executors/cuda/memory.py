"""How many pages the GPU's memory holds beside the weights."""

import math

import torch

from compile.program import Attend, Program
from quant.format.errors import InputError
from quant.format.scheme import CodebookScheme, FloatScheme, IntScheme, Scheme
from runtime.kernels.triton.cache import CacheNumber
from runtime.kernels.triton.tuning import LEAST_CAPABILITY

MEMORY_SHARE = 0.9
"""Part of the free memory that weights and pages may fill; the rest is for a step's values."""
E4M3_SINCE = (8, 9)
_WIDTHS = {"float32": 4, "float16": 2, "bfloat16": 2, "int8": 1, "e4m3": 1}
_SCALE_BYTES = 4
_SCALE_BITS = 1
"""Scales of groups of 16 columns and more take a bit of each number; ggml's, with minimums and in
32 bits, take three."""


def require_gpu(number: int | None = None) -> None:
    """Raises InputError where there is no GPU, or none of this number."""
    if not torch.cuda.is_available():
        raise InputError(
            "no NVIDIA GPU can be used here; leave out --backend cuda, or install torch with CUDA"
        )
    count = torch.cuda.device_count()
    if number is not None and number >= count:
        raise InputError(
            f"GPU {number} was asked for, and there are {count}, counted from 0; share the model "
            "among fewer processes with --tensor-parallel"
        )


def check_capability(capability: tuple[int, int]) -> None:
    """Raises InputError for a GPU that no kernel here is compiled for."""
    if capability < LEAST_CAPABILITY:
        major, minor = capability
        raise InputError(
            f"this GPU has compute capability {major}.{minor}; the cuda backend needs 8.0 (Ampere) "
            "or later: leave out --backend cuda"
        )


def check_e4m3(program: Program, cache: CacheNumber, capability: tuple[int, int]) -> None:
    """Raises InputError where a model or its cache needs numbers that a GPU of this compute
    capability does not have."""
    if capability >= E4M3_SINCE:
        return
    schemes = {op.scheme for op in program.projections()}
    ways = [scheme.activation for scheme in schemes if not isinstance(scheme, FloatScheme)]
    if cache == "e4m3" or any(way is not None and way.numbers == "e4m3" for way in ways):
        major, minor = capability
        raise InputError(
            f"this GPU, of compute capability {major}.{minor}, has no e4m3 numbers, which this "
            "model or its cache is rounded to; 8.9 and later ones have them: use --backend torch, "
            "or a build that rounds to int8 or not at all"
        )


def page_bytes(program: Program, page_size: int, number: CacheNumber) -> int:
    """Bytes of one page over all layers."""
    total = 0
    for op in program.ops:
        if isinstance(op, Attend):
            scale = _SCALE_BYTES if number == "int8" else 0
            total += 2 * op.kv_heads * page_size * (op.head_dim * _WIDTHS[number] + scale)
    return total


def weights_on_device(program: Program) -> int:
    """Bytes of all matrices, at most: what is not kept as integers has 16 bits."""
    bits = {op.weight: _bits_held(op.scheme) for op in program.projections()}
    return sum(
        math.prod(shape) * bits.get(name, 16 + _SCALE_BITS) // 8
        for name, shape in program.weights().items()
    )


def _bits_held(scheme: Scheme) -> int:
    """Of a number, its part of the scales included."""
    if isinstance(scheme, IntScheme):
        groups_of_32_bits = 0 if scheme.ggml_type is None else 2 * _SCALE_BITS
        return (4 if scheme.num_bits <= 4 else 8) + _SCALE_BITS + groups_of_32_bits
    if isinstance(scheme, CodebookScheme) and scheme.codebook == "e4m3" and scheme.activation:
        return 8 + _SCALE_BITS
    return 16 + _SCALE_BITS


def pages_that_fit(
    program: Program, page_size: int, number: CacheNumber, kv_cache_bytes: int | None
) -> int:
    """Pages in `kv_cache_bytes`, or in what is free; not more than 64 full contexts.

    Raises InputError, with the arithmetic, where not even one page is left.
    """
    each = page_bytes(program, page_size, number)
    if kv_cache_bytes is not None:
        return kv_cache_bytes // each
    free, _ = torch.cuda.mem_get_info()
    weights = weights_on_device(program)
    left = int(MEMORY_SHARE * free) - weights
    if left < 2 * each:
        raise InputError(
            f"the weights take about {weights / 1e9:.1f} GB of the {free / 1e9:.1f} GB that are "
            f"free on the GPU, which leaves no page of {each / 1e6:.1f} MB for keys and values; "
            "use a smaller build or more GPUs"
        )
    return min(left // each, 64 * -(-program.sizes.max_positions // page_size) + 1)
