"""Scales of the KV cache: written, read under both names, and refused when they contradict."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from quant.format.checkpoint import open_checkpoint
from quant.format.compressed_tensors import quantization_config
from quant.format.errors import FileFormatError, InputError
from quant.format.kv_cache import (
    KvCacheScheme,
    KvScales,
    encode_kv_scales,
    kv_cache_args,
    kv_cache_bytes,
    kv_scale,
    load_kv_scales,
    parse_kv_cache,
)
from tests.quant.format.random_weights import int_scheme
from tests.quant.format.tiny_quantized import MLP, kv_scales, quantized_llama

Stored = dict[str, npt.NDArray[Any]]
FP8 = KvCacheScheme()
A0 = "model.layers.0.self_attn"


def load(stored: Stored, scheme: KvCacheScheme | None = FP8) -> dict[int, KvScales]:
    return load_kv_scales(stored, stored.__getitem__, scheme, "checkpoint")


def test_names_dtype_and_shape() -> None:
    stored = encode_kv_scales(A0, KvScales(0.5, 0.25))
    assert set(stored) == {f"{A0}.k_scale", f"{A0}.v_scale"}
    assert {(array.dtype.name, array.shape) for array in stored.values()} == {("float32", (1,))}
    assert load(dict(stored)) == {0: KvScales(0.5, 0.25)}
    assert kv_cache_bytes(2, FP8) == 2 * sum(array.nbytes for array in stored.values())
    assert kv_cache_bytes(2, KvCacheScheme(dynamic=True)) == kv_cache_bytes(2, None) == 0


def test_other_names_and_scalars() -> None:
    stored: Stored = {
        f"{A0}.k_proj.k_scale": np.array(0.5, ml_dtypes.bfloat16),
        f"{A0}.v_proj.v_scale": np.array(0.25, np.float16),
    }
    assert load(stored) == {0: KvScales(0.5, 0.25)}


@pytest.mark.parametrize("scheme", [FP8, KvCacheScheme("int8"), KvCacheScheme(dynamic=True)])
def test_the_package_takes_the_config(scheme: KvCacheScheme) -> None:
    quantization = pytest.importorskip("compressed_tensors.quantization")
    config = quantization_config({"a": int_scheme(4, True, 32)}, scheme)
    assert parse_kv_cache(config["kv_cache_scheme"], "x") == scheme
    args = quantization.QuantizationConfig.model_validate(config).kv_cache_scheme
    assert (args.num_bits, args.strategy, args.dynamic) == (8, "tensor", scheme.dynamic)
    alone = quantization_config({}, scheme)
    assert (alone["format"], alone["config_groups"]) == ("dense", {})


def test_scales_bring_the_largest_to_the_top() -> None:
    assert kv_scale(448.0, FP8) == 1.0
    assert kv_scale(127.5, KvCacheScheme("int8")) == 1.0
    assert kv_scale(0.0, FP8) == kv_scale(1e-60, FP8) == 1.0


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf"), 1e-60])
def test_a_scale_that_is_none_is_not_written(scale: float) -> None:
    with pytest.raises(ValueError, match="v_scale"):
        encode_kv_scales(A0, KvScales(1.0, scale))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({f"{A0}.v_scale": None}, "layer 0 has no v_scale"),
        ({f"{A0}.k_scale": np.ones(2, np.float32)}, "k_scale.*one float"),
        ({f"{A0}.k_scale": np.ones(1, np.int32)}, "k_scale.*one float"),
        ({f"{A0}.k_scale": np.zeros(1, np.float32)}, "k_scale.*not a positive"),
        ({f"{A0}.k_scale": np.full(1, np.nan, np.float32)}, "k_scale.*not a positive"),
        ({f"{A0}.k_proj.k_scale": np.ones(1, np.float32)}, "two names"),
        ({f"{A0}.k_scale": None, f"{A0}.v_scale": None}, "no scale is stored"),
    ],
)
def test_lies_are_refused(change: Stored, message: str) -> None:
    stored: Stored = {**encode_kv_scales(A0, KvScales(0.5, 0.25)), **change}
    stored = {name: array for name, array in stored.items() if array is not None}
    with pytest.raises(FileFormatError, match=message):
        load(stored)


@pytest.mark.parametrize("scheme", [None, KvCacheScheme(dynamic=True)])
def test_scales_that_the_config_does_not_name(scheme: KvCacheScheme | None) -> None:
    with pytest.raises(FileFormatError, match="k_scale' belongs to no KV cache"):
        load(dict(encode_kv_scales(A0, KvScales(0.5, 0.25))), scheme)


@pytest.mark.parametrize(
    "args",
    [
        {"num_bits": 4, "type": "float"},
        {"num_bits": 8, "type": "float", "symmetric": False},
        {"num_bits": 8, "type": "float", "strategy": "attn_head"},
        {"num_bits": 8, "type": ["float"]},
        {"num_bits": 8, "type": "float", "dynamic": "local"},
        8,
    ],
)
def test_other_schemes_are_refused(args: object) -> None:
    with pytest.raises(InputError, match="kv_cache_scheme"):
        parse_kv_cache(args, "checkpoint")


def test_a_checkpoint_closes_its_books_with_them(tmp_path: Path) -> None:
    schemes = dict.fromkeys(MLP, int_scheme(4, True, 32))
    quantized_llama(tmp_path / "model", schemes, kv_cache=FP8)
    source = open_checkpoint(tmp_path / "model")
    assert source.kv_cache == parse_kv_cache(kv_cache_args(FP8), "x")
    assert [source.kv_scales(layer) for layer in range(3)] == [kv_scales(0), kv_scales(1), None]
    assert not any("scale" in name for name in source.names())
    stored = sum(source.load_raw(name).nbytes for name in source.raw_names())
    weights = sum(source.stored_bytes(name) for name in source.names())
    assert stored == weights + kv_cache_bytes(2, FP8)
