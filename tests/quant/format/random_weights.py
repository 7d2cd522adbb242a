"""Random quantized weights for the tests of the formats."""

import ml_dtypes
import numpy as np
import numpy.typing as npt

from quant.format.scheme import IntScheme, PerChannel, PerGroup
from quant.format.tensor import QuantizedTensor


def int_scheme(num_bits: int, symmetric: bool, group_size: int | None) -> IntScheme:
    return IntScheme(num_bits, symmetric, PerGroup(group_size) if group_size else PerChannel())


def random_weight(
    scheme: IntScheme,
    rows: int,
    columns: int,
    *,
    seed: int = 0,
    scale_dtype: npt.DTypeLike = ml_dtypes.bfloat16,
    lowest_zero: int = 0,
) -> QuantizedTensor:
    """Every code equally likely; zero points at least `lowest_zero` above qmin."""
    random = np.random.default_rng(seed)
    groups = scheme.groups(columns)
    codes = random.integers(scheme.qmin, scheme.qmax + 1, (rows, columns), dtype=np.int8)
    scale = random.uniform(1e-3, 1e-1, (rows, groups)).astype(scale_dtype)
    zero_point = None
    if not scheme.symmetric:
        low = scheme.qmin + lowest_zero
        zero_point = random.integers(low, scheme.qmax + 1, (rows, groups), dtype=np.int8)
    return QuantizedTensor(scheme, codes, scale, zero_point)


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
    assert actual.digest() == expected.digest()
