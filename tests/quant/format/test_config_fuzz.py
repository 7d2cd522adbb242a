"""Any JSON in a quantization config opens or is a sentence for the user, never a crash."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.format import awq, compressed_tensors, fp8, gptq
from quant.format.codec import WeightCodec
from quant.format.compressed_tensors import CompressedTensorsCodec, quantization_config
from quant.format.errors import InputError
from quant.format.kv_cache import KvCacheScheme
from tests.quant.format.random_weights import SCHEMES, int_scheme, random_weight

Stored = Mapping[str, npt.NDArray[Any]]
MakeCodec = Callable[[Mapping[str, Any], str], WeightCodec]

WEIGHT = random_weight(int_scheme(4, False, 32), 16, 64, scale_dtype=np.float16, lowest_zero=1)
GPTQ = {
    "bits": 4,
    "group_size": 32,
    "sym": False,
    "desc_act": False,
    "checkpoint_format": "gptq",
    "pack_dtype": "int32",
    "dynamic": {},
}
FP8 = random_weight(SCHEMES["fp8-block"], 16, 128, scale_dtype=np.float32)
AWQ = {"bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}
CASES: dict[str, tuple[MakeCodec, dict[str, Any], Stored]] = {
    "compressed-tensors": (
        CompressedTensorsCodec,
        quantization_config({"a": WEIGHT.scheme}),
        compressed_tensors.encode_weight("a", WEIGHT),
    ),
    "fp8": (
        fp8.Fp8Codec,
        fp8.quantization_config({"a": FP8.scheme}),
        fp8.encode_weight("a", FP8),
    ),
    "gptq": (gptq.GptqCodec, GPTQ, gptq.encode_weight("a", WEIGHT, 1)),
    "awq": (awq.AwqCodec, AWQ, awq.encode_weight("a", WEIGHT)),
}
for name in ("nvfp4", "mxfp8", "w8a8-tensor-asym", "fp8-static"):
    other = random_weight(SCHEMES[name], 16, 64)
    CASES[name] = (
        CompressedTensorsCodec,
        quantization_config({"a": other.scheme}, KvCacheScheme()),
        compressed_tensors.encode_weight("a", other),
    )
DTYPES = (
    *(np.int32, np.int8, np.uint8, np.int64, np.float16, np.float32),
    *(ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e8m0fnu),
)
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 1 << 70),
    st.floats(),
    st.sampled_from(
        [0, 1, 3, 4, 8, 16, 32, 64, 4.0, "4", "group", "re:(", "Linear", "", True, "local"]
    ),
)
JSON = st.recursive(
    LEAVES,
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=4,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Paths to every value inside `value`."""
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
        yield (*at, key)
        if isinstance(inner, dict | list):
            yield from places(inner, (*at, key))


@pytest.mark.parametrize("case", CASES)
@given(data=st.data())
def test_one_changed_value_never_crashes(case: str, data: st.DataObject) -> None:
    make, config, stored = CASES[case]
    changed = deepcopy(config)
    path = data.draw(st.sampled_from(list(places(config))))
    target = changed
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = data.draw(JSON)
    try:
        codec = make(changed, "checkpoint")
        for weight in codec.find(stored, stored.__getitem__):
            assert np.isfinite(codec.decode(weight, stored.__getitem__).dequantize()).all()
    except InputError as error:
        assert "checkpoint" in str(error)


def filled(shape: Sequence[int], fill: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """-1 becomes the largest number of an unsigned type, and NaN in one of powers of two."""
    return np.full(shape, fill, np.int64).astype(dtype)


@pytest.mark.parametrize("case", CASES)
@given(data=st.data())
def test_one_changed_tensor_never_crashes(case: str, data: st.DataObject) -> None:
    make, config, stored = CASES[case]
    name = data.draw(st.sampled_from(sorted(stored)))
    shape = data.draw(st.lists(st.integers(0, 70), max_size=3))
    dtype = data.draw(st.sampled_from(DTYPES))
    fill = data.draw(st.sampled_from([0, 1, -1, 127]))
    changed = {**stored, name: filled(shape, fill, dtype)}
    if data.draw(st.booleans()):
        changed[name] = filled(stored[name].shape, fill, stored[name].dtype)
    try:
        codec = make(config, "checkpoint")
        for weight in codec.find(changed, changed.__getitem__):
            decoded = codec.decode(weight, changed.__getitem__)
            assert decoded.dequantize().shape == weight.shape
    except InputError as error:
        assert "'a'" in str(error)
