"""What we encode is what the compressed-tensors package and transformers read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from quant.format.checkpoint import open_checkpoint
from quant.format.compressed_tensors import (
    CompressedTensorsCodec,
    encode_weight,
    quantization_config,
)
from quant.format.errors import FileFormatError, InputError, UnsupportedModelError
from quant.format.scheme import FloatScheme, IntScheme, PerTensor, Scheme
from quant.format.tensor import QuantizedTensor
from tests.quant.format.random_weights import assert_same, int_scheme, random_weight, to_torch
from tests.quant.format.tiny_quantized import ATTENTION, MLP, quantized_llama
from tests.tiny import tiny_config, tiny_tensors

Stored = dict[str, npt.NDArray[Any]]
SCHEMES = [
    int_scheme(bits, symmetric, size)
    for bits in (4, 8)
    for symmetric in (True, False)
    for size in (None, 32)
]


def decode(config: Mapping[str, Any], stored: Stored) -> dict[str, QuantizedTensor]:
    codec = CompressedTensorsCodec(config, "checkpoint")
    found = codec.find(stored, stored.__getitem__)
    return {weight.module: codec.decode(weight, stored.__getitem__) for weight in found}


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("columns", "size"), [(64, 16), (64, 64), (41, None), (96, 32)])
def test_round_trip(bits: int, symmetric: bool, columns: int, size: int | None) -> None:
    tensor = random_weight(int_scheme(bits, symmetric, size), 13, columns)
    config = quantization_config({"a.q_proj": tensor.scheme})
    assert_same(decode(config, encode_weight("a.q_proj", tensor))["a.q_proj"], tensor)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float32])
def test_the_package_decompresses_to_the_same_floats(scheme: IntScheme, dtype: type) -> None:
    package = pytest.importorskip("compressed_tensors.compressors")
    schemes = pytest.importorskip("compressed_tensors.quantization")
    tensor = random_weight(scheme, 24, 64, scale_dtype=dtype)
    stored = {
        name.removeprefix("a."): to_torch(array)
        for name, array in encode_weight("a", tensor).items()
    }
    group = quantization_config({"a": scheme})["config_groups"]["group_0"]
    theirs = package.BaseCompressor.get_value_from_registry("pack-quantized").decompress(
        stored, schemes.QuantizationScheme(**group)
    )["weight"]
    # The package multiplies in the dtype of the scale; our float32 product is exact for 16 bits.
    ours = to_torch(tensor.dequantize()).to(theirs.dtype)
    assert theirs.shape == ours.shape
    assert bool((theirs == ours).all())


@pytest.mark.parametrize(
    "schemes",
    [
        dict.fromkeys(ATTENTION + MLP, int_scheme(4, True, 32)),
        dict.fromkeys(ATTENTION, int_scheme(8, True, None)) | {"up_proj": int_scheme(4, True, 64)},
        dict.fromkeys(MLP, int_scheme(4, False, 32)),
        dict.fromkeys(ATTENTION + MLP, int_scheme(8, False, None)),
    ],
    ids=["one", "mixed", "int4-asym", "int8-asym"],
)
def test_transformers_loads_it_and_holds_the_same_weights(
    tmp_path: Path, schemes: dict[str, IntScheme]
) -> None:
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    quantized = quantized_llama(tmp_path / "model", schemes)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.bfloat16
    )
    # The first forward pass unpacks the weights.
    assert bool(torch.isfinite(model(torch.tensor([[1, 2, 3]])).logits).all())
    weights = dict(model.named_parameters())
    for name, tensor in quantized.items():
        assert bool((weights[name] == to_torch(tensor.dequantize()).to(torch.bfloat16)).all()), name


def test_open_checkpoint_reads_it_back(tmp_path: Path) -> None:
    schemes = {"q_proj": int_scheme(4, True, 32), "down_proj": int_scheme(8, False, None)}
    quantized = quantized_llama(tmp_path / "model", schemes)
    source = open_checkpoint(tmp_path / "model")
    expected = tiny_tensors(tiny_config("llama", tied=True))
    assert set(source.names()) == set(expected)
    for name, array in expected.items():
        assert source.shape(name) == array.shape
        loaded = source.load(name)
        if name in quantized:
            assert isinstance(loaded, QuantizedTensor)
            assert_same(loaded, quantized[name])
            assert source.scheme(name) == quantized[name].scheme
        else:
            assert not isinstance(loaded, QuantizedTensor)
            np.testing.assert_array_equal(loaded, array)
            assert source.scheme(name) == FloatScheme("bfloat16")
    stored = sum(source.load_raw(name).nbytes for name in source.raw_names())
    assert sum(source.stored_bytes(name) for name in source.names()) == stored


def int_quantized_config(**weights: Any) -> dict[str, Any]:
    args = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"} | weights
    return {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": args}},
        "ignore": ["lm_head"],
    }


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("size", [None, 32])
def test_int_quantized(symmetric: bool, size: int | None) -> None:
    tensor = random_weight(int_scheme(8, symmetric, size), 6, 64)
    stored: Stored = {"a.weight": tensor.codes, "a.weight_scale": tensor.scale}
    if tensor.zero_point is not None:
        stored["a.weight_zero_point"] = tensor.zero_point
    strategy = {"strategy": "group", "group_size": size} if size else {}
    config = int_quantized_config(symmetric=symmetric, **strategy)
    assert_same(decode(config, stored)["a"], tensor)


def test_one_scale_for_the_whole_weight() -> None:
    tensor = random_weight(int_scheme(8, True, None), 6, 64)
    stored: Stored = {"a.weight": tensor.codes, "a.weight_scale": tensor.scale[0]}
    ours = decode(int_quantized_config(strategy="tensor"), stored)["a"]
    assert ours.scheme == IntScheme(8, True, PerTensor())
    np.testing.assert_array_equal(ours.scale, tensor.scale[:1])
    expected = ours.codes * np.float32(tensor.scale[0, 0])
    np.testing.assert_array_equal(ours.dequantize(), expected)


def test_stored_column_order() -> None:
    tensor = random_weight(int_scheme(4, True, 32), 6, 64)
    stored = encode_weight("a", tensor)
    index = np.random.default_rng(0).permutation(np.arange(64) // 32).astype(np.int32)
    stored["a.weight_g_idx"] = index
    config = quantization_config({"a": tensor.scheme})
    np.testing.assert_array_equal(decode(config, stored)["a"].column_groups(), index)
    stored["a.weight_g_idx"] = np.full(64, -1, dtype=np.int32)
    assert decode(config, stored)["a"].group_index is None


def test_names_beat_patterns_beat_classes_and_ignore_beats_all() -> None:
    def group(targets: list[str], bits: int) -> dict[str, Any]:
        args = {"num_bits": bits, "strategy": "channel", "symmetric": True}
        return {"targets": targets, "weights": args, "format": "pack-quantized"}

    groups = [group(["Linear"], 8), group(["re:.*up_proj"], 4), group(["m.0.up_proj"], 3)]
    config = {"config_groups": dict(enumerate(groups)), "ignore": ["re:.*head"]}
    modules = ["m.0.up_proj", "m.1.up_proj", "m.0.q_proj"]
    tensor = random_weight(int_scheme(8, True, None), 4, 32)
    bits = {}
    for module, guess in zip(modules, (3, 4, 8), strict=True):
        stored = encode_weight(module, random_weight(int_scheme(guess, True, None), 4, 32))
        bits[module] = decode(config, stored)[module].scheme.num_bits
    assert bits == {"m.0.up_proj": 3, "m.1.up_proj": 4, "m.0.q_proj": 8}
    with pytest.raises(FileFormatError, match="lm_head"):
        decode(config, encode_weight("lm_head", tensor))


def test_config_ignores_what_is_not_quantized() -> None:
    states: dict[str, Scheme] = {"a": int_scheme(4, True, 32), "b": FloatScheme("bfloat16")}
    config = quantization_config(states)
    assert config["ignore"] == ["b", "lm_head"]
    assert config["config_groups"]["group_0"]["targets"] == ["Linear"]
    assert json.loads(json.dumps(config)) == config
    config = quantization_config(states | {"c": int_scheme(8, True, 32), "lm_head": states["a"]})
    assert config["ignore"] == ["b"]
    assert [g["targets"] for g in config["config_groups"].values()] == [["a", "lm_head"], ["c"]]


def test_an_embedding_is_targeted_by_name() -> None:
    scheme = int_scheme(8, True, 32)
    states: dict[str, Scheme] = {"m.embed_tokens": scheme, "m.q_proj": scheme}
    config = quantization_config(states)
    assert config["config_groups"]["group_0"]["targets"] == ["m.embed_tokens", "m.q_proj"]
    config = quantization_config(states | {"m.embed_tokens": FloatScheme("bfloat16")})
    assert config["config_groups"]["group_0"]["targets"] == ["Linear"]
    with pytest.raises(UnsupportedModelError, match="no module"):
        quantization_config({"a": FloatScheme("bfloat16")})


def test_encode_refuses_what_the_format_cannot_hold() -> None:
    scheme = int_scheme(4, True, 32)
    whole = random_weight(scheme, 4, 64)
    short = random_weight(scheme, 4, 48)
    with pytest.raises(UnsupportedModelError, match=r"'a'.*48 columns"):
        encode_weight("a", short)
    ordered = QuantizedTensor(scheme, whole.codes, whole.scale, group_index=np.zeros(64, np.int32))
    with pytest.raises(UnsupportedModelError, match=r"'a'.*column order"):
        encode_weight("a", ordered)
    minimum = QuantizedTensor(scheme, whole.codes, whole.scale, minimum=whole.scale)
    with pytest.raises(UnsupportedModelError, match=r"'a'.*minimums"):
        encode_weight("a", minimum)


def edit(stored: Stored, part: str, array: npt.NDArray[Any] | None) -> Stored:
    changed = {name: value for name, value in stored.items() if name != f"a.{part}"}
    return changed if array is None else changed | {f"a.{part}": array}


@pytest.mark.parametrize(
    ("part", "array", "message"),
    [
        ("weight_scale", None, "weight_scale' is missing"),
        ("weight_scale", np.full((4, 2), np.nan, np.float32), "NaN"),
        ("weight_scale", np.full((4, 2), np.inf, np.float16), "infinite"),
        ("weight_scale", np.ones((4, 3), np.float32), "shape"),
        ("weight_scale", np.ones((4, 2), np.int32), "dtype int32"),
        ("weight_zero_point", None, "weight_zero_point' is missing"),
        ("weight_zero_point", np.full((4, 2), 8, np.int8), "outside -8..7"),
        ("weight_zero_point", np.zeros((2, 2), np.int32), "shape"),
        ("weight_shape", None, "weight_shape' is missing"),
        ("weight_shape", np.array([4, 1 << 40]), "shape"),
        ("weight_shape", np.array([-4, 64]), "weight_shape says"),
        ("weight_shape", np.array([5, 64]), "shape"),
        ("weight_shape", np.array([4, 60]), "do not divide"),
        ("weight_shape", np.array([4, 96]), "shape"),
        ("weight_g_idx", np.full(64, 2, np.int32), "g_idx"),
        ("weight_g_idx", np.full(64, 1, np.int32), "more than 32 columns"),
        ("weight_packed", np.zeros((4, 7), np.int32), "shape"),
    ],
)
def test_lies_are_refused_by_name(part: str, array: npt.NDArray[Any] | None, message: str) -> None:
    scheme = int_scheme(4, False, 32)
    stored = edit(encode_weight("a", random_weight(scheme, 4, 64)), part, array)
    with pytest.raises(FileFormatError, match=f"'a'.*{message}"):
        decode(quantization_config({"a": scheme}), stored)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"num_bits": 9}, "num_bits 9"),
        ({"num_bits": "4"}, "num_bits"),
        ({"strategy": "group", "group_size": 0}, "group_size 0"),
        ({"strategy": "group", "group_size": None}, "group_size None"),
        ({"strategy": "block"}, "block_structure None"),
        ({"type": "float"}, "no combination"),
        ({"dynamic": True}, "dynamic"),
        ({"symmetric": 1}, "symmetric"),
    ],
)
def test_bad_weight_arguments(weights: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        decode(int_quantized_config(**weights), {})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "nvfp4-pack-quantized"}, "nvfp4"),
        ({"kv_cache_scheme": {"num_bits": 4}}, "kv_cache_scheme"),
        ({"transform_config": {"config_groups": {}}}, "transform_config"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "sparse"),
        ({"config_groups": None}, "config_groups"),
        ({"ignore": [1]}, "ignore"),
        ({"ignore": ["re:("]}, "regular expression"),
    ],
)
def test_bad_config(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        decode(int_quantized_config() | change, {})


def test_codes_wider_than_the_scheme_are_refused() -> None:
    stored: Stored = {"a.weight": np.full((2, 4), 8, np.int8)}
    stored["a.weight_scale"] = np.ones((2, 1), np.float32)
    with pytest.raises(FileFormatError, match=r"'a'.*outside -8..7"):
        decode(int_quantized_config(num_bits=4), stored)


def test_padded_words_of_old_writers_are_not_guessed() -> None:
    """20 codes of 3 bits take two words densely and two words at ten codes a word."""
    scheme = int_scheme(3, True, None)
    tensor = random_weight(scheme, 4, 20)
    stored, config = encode_weight("a", tensor), quantization_config({"a": scheme})
    assert_same(decode(config, stored)["a"], tensor)
    for version in ("0.17.1", None, "x"):
        with pytest.raises(UnsupportedModelError, match=r"'a'.*padded"):
            decode(config | {"version": version}, stored)
