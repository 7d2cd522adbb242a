"""Random quantized weights for the tests of the formats."""

from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from quant.format.scheme import (
    ActivationScheme,
    CodebookScheme,
    IntScheme,
    PerBlock,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    QuantizedScheme,
    scale_shape,
)
from quant.format.tensor import QuantizedTensor


def int_scheme(num_bits: int, symmetric: bool, group_size: int | None) -> IntScheme:
    return IntScheme(num_bits, symmetric, PerGroup(group_size) if group_size else PerChannel())


_INT8 = ActivationScheme("int8", PerToken())
_FP8 = ActivationScheme("e4m3", PerToken())
_G16, _G32, _BLOCK = PerGroup(16), PerGroup(32), PerBlock(128, 128)
WITH_ACTIVATIONS: dict[str, QuantizedScheme] = {
    "w8a8": IntScheme(8, True, PerChannel(), _INT8),
    "w8a8-tensor": IntScheme(8, True, PerTensor(), _INT8),
    "w8a8-tensor-asym": IntScheme(8, False, PerTensor(), _INT8),
    "w8a8-asym": IntScheme(8, False, PerChannel(), _INT8),
    "w8a8-static": IntScheme(8, True, PerChannel(), ActivationScheme("int8", PerTensor(), False)),
    "w4a8": IntScheme(4, True, _G32, _INT8),
    "w4a-fp8": IntScheme(4, True, _G32, _FP8),
    "fp8-dynamic": CodebookScheme("e4m3", PerChannel(), activation=_FP8),
    "fp8-static": CodebookScheme(
        "e4m3", PerTensor(), activation=ActivationScheme("e4m3", PerTensor(), False)
    ),
    "fp8-block": CodebookScheme("e4m3", _BLOCK, activation=ActivationScheme("e4m3", PerGroup(128))),
    "nvfp4": CodebookScheme("e2m1", _G16, "e4m3", ActivationScheme("e2m1", _G16)),
    "mxfp4": CodebookScheme("e2m1", _G32, "e8m0", ActivationScheme("e2m1", _G32)),
    "mxfp8": CodebookScheme("e4m3", _G32, "e8m0", ActivationScheme("e4m3", _G32)),
}
WEIGHT_ONLY: dict[str, QuantizedScheme] = {
    "fp8-weights": CodebookScheme("e4m3", PerChannel()),
    "fp8-block-weights": CodebookScheme("e4m3", _BLOCK),
    "fp8-group-weights": CodebookScheme("e4m3", PerGroup(64)),
    "nvfp4-weights": CodebookScheme("e2m1", _G16, "e4m3"),
    "mxfp4-weights": CodebookScheme("e2m1", _G32, "e8m0"),
    "mxfp8-weights": CodebookScheme("e4m3", _G32, "e8m0"),
}


SCHEMES = WITH_ACTIVATIONS | WEIGHT_ONLY


def random_weight(
    scheme: QuantizedScheme,
    rows: int,
    columns: int,
    *,
    seed: int = 0,
    scale_dtype: npt.DTypeLike = ml_dtypes.bfloat16,
    lowest_zero: int = 0,
) -> QuantizedTensor:
    """Every code equally likely; zero points at least `lowest_zero` above qmin."""
    random = np.random.default_rng(seed)
    groups = scale_shape(scheme, (rows, columns))
    activation = scheme.activation
    stored_input = activation is not None and not activation.dynamic
    if isinstance(scheme, CodebookScheme):
        nested = scheme.scales == "e4m3"
        return QuantizedTensor(
            scheme,
            _codebook_codes(random, scheme, (rows, columns)),
            _codebook_scale(random, scheme, groups, scale_dtype),
            global_scale=float(np.float32(random.uniform(50, 5000))) if nested else None,
            input_scale=0.0625 if stored_input or (nested and activation is not None) else None,
        )
    codes = random.integers(scheme.qmin, scheme.qmax + 1, (rows, columns), dtype=np.int8)
    scale = random.uniform(1e-3, 1e-1, groups).astype(scale_dtype)
    zero_point = None
    if not scheme.symmetric:
        low = scheme.qmin + lowest_zero
        zero_point = random.integers(low, scheme.qmax + 1, groups, dtype=np.int8)
    input_scale = 0.0625 if stored_input else None
    return QuantizedTensor(scheme, codes, scale, zero_point, input_scale=input_scale)


def _codebook_codes(
    random: np.random.Generator, scheme: CodebookScheme, shape: tuple[int, int]
) -> npt.NDArray[np.int8]:
    """Every code but the two of e4m3 that are no numbers."""
    codes = random.integers(0, 1 << scheme.num_bits, shape, dtype=np.uint8)
    if scheme.codebook == "e4m3":
        codes[codes & 127 == 127] = 0
    return codes.view(np.int8)


def _codebook_scale(
    random: np.random.Generator,
    scheme: CodebookScheme,
    shape: tuple[int, int],
    dtype: npt.DTypeLike,
) -> npt.NDArray[Any]:
    if scheme.scales == "e8m0":
        return random.integers(110, 130, shape, dtype=np.uint8).view(ml_dtypes.float8_e8m0fnu)
    if scheme.scales == "e4m3":
        return random.integers(1, 127, shape, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn)
    return random.uniform(1e-3, 1e-1, shape).astype(dtype)


def assert_same(actual: QuantizedTensor, expected: QuantizedTensor) -> None:
    """Same scheme, integers, scales in the same dtype, and column order."""
    assert actual.scheme == expected.scheme
    np.testing.assert_array_equal(actual.codes, expected.codes)
    assert actual.codes.dtype == np.int8
    assert actual.scale.dtype == expected.scale.dtype
    np.testing.assert_array_equal(actual.scale, expected.scale)
    assert (actual.zero_point is None) == (expected.zero_point is None)
    if actual.zero_point is not None and expected.zero_point is not None:
        np.testing.assert_array_equal(actual.zero_point, expected.zero_point)
        assert actual.zero_point.dtype == np.int8
    np.testing.assert_array_equal(actual.column_groups(), expected.column_groups())
    assert actual.global_scale == expected.global_scale
    assert actual.input_scale == expected.input_scale
    assert actual.digest() == expected.digest()


def to_torch(array: npt.NDArray[Any]) -> Any:
    """The same tensor in torch, which knows nothing of ml_dtypes."""
    import torch

    own = {
        "bfloat16": (np.int16, torch.bfloat16),
        "float8_e4m3fn": (np.uint8, torch.float8_e4m3fn),
        "float8_e8m0fnu": (np.uint8, torch.float8_e8m0fnu),
    }
    if array.dtype.name not in own:
        return torch.from_numpy(np.ascontiguousarray(array))
    bits, dtype = own[array.dtype.name]
    return torch.from_numpy(np.ascontiguousarray(array).view(bits)).view(dtype)


def from_torch(tensor: Any) -> npt.NDArray[Any]:
    """Inverse of `to_torch`."""
    import torch

    own = {
        torch.bfloat16: (torch.int16, ml_dtypes.bfloat16),
        torch.float8_e4m3fn: (torch.uint8, ml_dtypes.float8_e4m3fn),
        torch.float8_e8m0fnu: (torch.uint8, ml_dtypes.float8_e8m0fnu),
    }
    tensor = tensor.detach()
    if tensor.dtype not in own:
        return np.asarray(tensor.numpy())
    bits, dtype = own[tensor.dtype]
    return np.asarray(tensor.contiguous().view(bits).numpy()).view(dtype)
