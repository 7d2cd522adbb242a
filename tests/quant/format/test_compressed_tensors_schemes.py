"""Formats beyond packed integers: the compressed-tensors package reads what we write, and we read
what it writes, code by code."""

import json
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.format.compressed_tensors import (
    CompressedTensorsCodec,
    encode_weight,
    format_of,
    quantization_config,
    why_not,
)
from quant.format.errors import FileFormatError, InputError, UnsupportedModelError
from quant.format.scheme import (
    ActivationScheme,
    CodebookScheme,
    FloatScheme,
    IntScheme,
    PerChannel,
    PerGroup,
    PerTensor,
    QuantizedScheme,
    Scheme,
)
from quant.format.tensor import QuantizedTensor
from tests.quant.format.random_weights import (
    SCHEMES,
    WEIGHT_ONLY,
    assert_same,
    from_torch,
    random_weight,
    to_torch,
)

Stored = dict[str, npt.NDArray[Any]]

NEGATIVE_ZERO = 8


def decode(config: Mapping[str, Any], stored: Stored) -> dict[str, QuantizedTensor]:
    codec = CompressedTensorsCodec(config, "checkpoint")
    found = codec.find(stored, stored.__getitem__)
    return {weight.module: codec.decode(weight, stored.__getitem__) for weight in found}


def theirs(scheme: QuantizedScheme) -> tuple[Any, Any]:
    """The package's compressor and its view of the group that we write."""
    compressors = pytest.importorskip("compressed_tensors.compressors")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    group = quantization_config({"a": scheme})["config_groups"]["group_0"]
    compressor = compressors.BaseCompressor.get_value_from_registry(group["format"])
    return compressor, quantization.QuantizationScheme(**group)


@pytest.mark.parametrize("name", SCHEMES)
@given(
    rows=st.integers(1, 5),
    groups=st.integers(1, 3),
    dtype=st.sampled_from([np.float16, np.float32, ml_dtypes.bfloat16]),
    seed=st.integers(0, 99),
)
def test_round_trip(name: str, rows: int, groups: int, dtype: npt.DTypeLike, seed: int) -> None:
    scheme = SCHEMES[name]
    size = {"fp8-block": 128, "fp8-block-weights": 200}.get(name, 50)
    if isinstance(scheme.granularity, PerGroup):
        size = scheme.granularity.size
    tensor = random_weight(scheme, rows * 30, groups * size, scale_dtype=dtype, seed=seed)
    stored = encode_weight("a.q_proj", tensor)
    config = json.loads(json.dumps(quantization_config({"a.q_proj": scheme})))
    assert_same(decode(config, stored)["a.q_proj"], tensor)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("shape", [(24, 128), (300, 256)])
def test_the_package_decompresses_to_the_same_floats(name: str, shape: tuple[int, int]) -> None:
    tensor = random_weight(SCHEMES[name], *shape, scale_dtype=np.float32)
    compressor, scheme = theirs(tensor.scheme)
    stored = {k.removeprefix("a."): to_torch(v) for k, v in encode_weight("a", tensor).items()}
    weight = compressor.decompress(stored, scheme)["weight"]
    # It multiplies float32 scales in float32 and those of one byte in bfloat16.
    ours = to_torch(tensor.dequantize()).to(weight.dtype)
    assert weight.shape == ours.shape
    assert bool((weight == ours).all())


@pytest.mark.parametrize("name", SCHEMES)
def test_the_package_compresses_to_the_same_bytes_and_we_read_them(name: str) -> None:
    """Given the same scales and the floats that the codes stand for."""
    tensor = random_weight(SCHEMES[name], 130, 128, scale_dtype=np.float32)
    if isinstance(tensor.scheme, CodebookScheme) and tensor.scheme.codebook == "e2m1":
        # The package has no negative zero.
        tensor.codes[tensor.codes == NEGATIVE_ZERO] = 0
    ours = encode_weight("a", tensor)
    compressor, scheme = theirs(tensor.scheme)
    codes = ("weight", "weight_packed", "weight_shape")
    given_ = {k.removeprefix("a."): to_torch(v) for k, v in ours.items()}
    given_ = {k: v for k, v in given_.items() if k not in codes}
    given_["weight"] = to_torch(tensor.dequantize())
    shape = ours["a.weight_scale"].shape
    given_["weight_scale"] = to_torch(tensor.scale.astype(np.float32).reshape(shape))
    if tensor.zero_point is not None:
        given_["weight_zero_point"] = to_torch(tensor.zero_point.reshape(shape))
    written = {f"a.{k}": from_torch(v) for k, v in compressor.compress(given_, scheme).items()}
    assert set(written) == set(ours)
    for part, array in ours.items():
        assert (written[part].dtype, written[part].shape) == (array.dtype, array.shape), part
        assert written[part].tobytes() == array.tobytes(), part
    assert_same(decode(quantization_config({"a": tensor.scheme}), written)["a"], tensor)


@pytest.mark.parametrize("name", SCHEMES)
def test_the_package_takes_the_config_and_names_the_same_format(name: str) -> None:
    torch = pytest.importorskip("torch")
    quantization = pytest.importorskip("compressed_tensors.quantization")
    formats = pytest.importorskip("compressed_tensors.compressors.format")
    config = quantization_config({"a": SCHEMES[name]})
    parsed = quantization.QuantizationConfig.model_validate(config)
    group = parsed.config_groups["group_0"]
    if name == "w4a-fp8":
        # vLLM's kernel for it takes packed words; the package would guess bytes.
        assert config["format"] == "pack-quantized"
    else:
        assert config["format"] == formats.infer_module_format(torch.nn.Linear, group).value


PRESETS = {
    "w8a8": "W8A8",
    "fp8-dynamic": "FP8_DYNAMIC",
    "fp8-static": "FP8",
    "fp8-block": "FP8_BLOCK",
    "nvfp4": "NVFP4",
    "nvfp4-weights": "NVFP4A16",
    "mxfp4": "MXFP4",
    "mxfp4-weights": "MXFP4A16",
    "mxfp8": "MXFP8",
    "mxfp8-weights": "MXFP8A16",
}


@pytest.mark.parametrize(("name", "preset"), PRESETS.items())
def test_the_config_says_what_the_presets_of_the_package_say(name: str, preset: str) -> None:
    presets = pytest.importorskip("compressed_tensors.quantization.quant_scheme").PRESET_SCHEMES
    _, scheme = theirs(SCHEMES[name])
    for side in ("weights", "input_activations"):
        expected, actual = presets[preset].get(side), getattr(scheme, side)
        assert (expected is None) == (actual is None)
        if expected is not None:
            observing = {"observer", "observer_kwargs", "zp_dtype"}
            assert actual.model_dump(exclude=observing) == expected.model_dump(exclude=observing)


FORMS: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {
    "w8a8": {"weight": ("int8", (256, 384)), "weight_scale": ("bfloat16", (256, 1))},
    "w8a8-tensor": {"weight": ("int8", (256, 384)), "weight_scale": ("bfloat16", (1,))},
    "w8a8-static": {
        "weight": ("int8", (256, 384)),
        "weight_scale": ("bfloat16", (256, 1)),
        "input_scale": ("float32", (1,)),
    },
    "w4a8": {"weight": ("int8", (256, 384)), "weight_scale": ("bfloat16", (256, 12))},
    "fp8-dynamic": {
        "weight": ("float8_e4m3fn", (256, 384)),
        "weight_scale": ("bfloat16", (256, 1)),
    },
    "fp8-static": {
        "weight": ("float8_e4m3fn", (256, 384)),
        "weight_scale": ("bfloat16", (1,)),
        "input_scale": ("float32", (1,)),
    },
    "fp8-block": {"weight": ("float8_e4m3fn", (256, 384)), "weight_scale": ("bfloat16", (2, 3))},
    "nvfp4": {
        "weight_packed": ("uint8", (256, 192)),
        "weight_scale": ("float8_e4m3fn", (256, 24)),
        "weight_global_scale": ("float32", (1,)),
        "input_global_scale": ("float32", (1,)),
    },
    "mxfp4": {"weight_packed": ("uint8", (256, 192)), "weight_scale": ("uint8", (256, 12))},
    "mxfp8": {"weight": ("float8_e4m3fn", (256, 384)), "weight_scale": ("uint8", (256, 12))},
}


@pytest.mark.parametrize("name", FORMS)
def test_names_dtypes_and_shapes(name: str) -> None:
    stored = encode_weight("m.q_proj", random_weight(SCHEMES[name], 256, 384))
    assert {
        part.removeprefix("m.q_proj."): (array.dtype.name, array.shape)
        for part, array in stored.items()
    } == FORMS[name]


def test_golden_nibbles_and_exponents() -> None:
    nvfp4, mxfp4 = CodebookScheme("e2m1", PerGroup(16), "e4m3"), WEIGHT_ONLY["mxfp4-weights"]
    codes = np.zeros((1, 16), np.int8)
    codes[0, :2] = 15, 1  # -6, 0.5
    scale = np.ones((1, 1), ml_dtypes.float8_e4m3fn)
    tensor = QuantizedTensor(nvfp4, codes, scale, global_scale=2.0)
    assert encode_weight("a", tensor)["a.weight_packed"][0, 0] == 0x1F
    np.testing.assert_array_equal(tensor.dequantize()[0, :3], [-3, 0.25, 0])
    powers = np.array([[1.0, 0.125]], ml_dtypes.float8_e8m0fnu)
    tensor = QuantizedTensor(mxfp4, np.zeros((1, 64), np.int8), powers)
    np.testing.assert_array_equal(encode_weight("a", tensor)["a.weight_scale"], [[127, 124]])


def test_schemes_of_different_formats_are_mixed_precision() -> None:
    quantization = pytest.importorskip("compressed_tensors.quantization")
    states: dict[str, Scheme] = {
        "m.q_proj": SCHEMES["fp8-dynamic"],
        "m.up_proj": IntScheme(4, True, PerGroup(32)),
        "m.down_proj": SCHEMES["nvfp4"],
        "m.k_proj": FloatScheme("bfloat16"),
    }
    config = quantization_config(states)
    assert config["format"] == "mixed-precision"
    assert config["ignore"] == ["m.k_proj", "lm_head"]
    formats = [group["format"] for group in config["config_groups"].values()]
    assert formats == ["float-quantized", "pack-quantized", "nvfp4-pack-quantized"]
    quantization.QuantizationConfig.model_validate(config)
    stored: Stored = {}
    tensors = {
        module: random_weight(scheme, 8, 64)
        for module, scheme in states.items()
        if not isinstance(scheme, FloatScheme)
    }
    for module, tensor in tensors.items():
        stored |= encode_weight(module, tensor)
    for module, tensor in decode(config, stored).items():
        assert_same(tensor, tensors.pop(module))
    assert not tensors


@pytest.mark.parametrize(
    ("scheme", "columns", "message"),
    [
        (CodebookScheme("iq4_nl", PerGroup(32)), 64, "has no format"),
        (IntScheme(4, True, PerGroup(32), ggml_type="Q4_0"), 64, "blocks of Q4_0"),
        (CodebookScheme("e2m1", PerGroup(32)), 64, "has no format"),
        (CodebookScheme("e2m1", PerGroup(32), "e4m3"), 64, "groups of 16"),
        (CodebookScheme("e4m3", PerChannel(), "e8m0"), 64, "groups of 32"),
        (IntScheme(4, True, PerTensor()), 64, "a scale per row at least"),
        (SCHEMES["nvfp4"], 40, "40 columns"),
        (SCHEMES["mxfp8"], 48, "48 columns"),
        (SCHEMES["fp8-block"], 576, "its 576 inputs do not divide into the groups of 128"),
    ],
)
def test_refusals(scheme: QuantizedScheme, columns: int, message: str) -> None:
    problem = why_not(scheme, (8, columns))
    assert problem is not None and message in problem
    with pytest.raises(UnsupportedModelError, match=rf"'a'.*{message}"):
        encode_weight("a", random_weight(scheme, 8, columns))


def test_a_missing_scale_of_the_inputs_is_refused() -> None:
    static = random_weight(SCHEMES["fp8-static"], 8, 32)
    tensor = QuantizedTensor(static.scheme, static.codes, static.scale)
    with pytest.raises(ValueError, match=r"'a' .*has no input_scale"):
        encode_weight("a", tensor)


@pytest.mark.parametrize(
    ("name", "part", "array", "message"),
    [
        ("fp8-dynamic", "weight_scale", None, "weight_scale' is missing"),
        ("fp8-dynamic", "weight_scale", np.full((8, 1), np.nan, np.float32), "NaN"),
        ("fp8-dynamic", "weight_scale", np.ones((8, 2), np.float32), "shape"),
        ("fp8-dynamic", "weight_scale", np.ones((8, 1), np.int32), "dtype int32"),
        ("fp8-dynamic", "weight", np.zeros((8, 128), np.int8), "dtype int8"),
        (
            "fp8-dynamic",
            "weight",
            np.full((8, 128), np.nan, ml_dtypes.float8_e4m3fn),
            "code is NaN",
        ),
        ("fp8-dynamic", "weight", np.zeros(8, ml_dtypes.float8_e4m3fn), "shape"),
        ("fp8-dynamic", "weight", np.zeros((0, 8), ml_dtypes.float8_e4m3fn), "shape"),
        ("fp8-dynamic", "input_scale", np.ones(1, np.float32), "does not speak of"),
        ("fp8-static", "input_scale", None, "input_scale' is missing"),
        ("fp8-static", "input_scale", np.full(1, np.inf, np.float32), "positive"),
        ("fp8-static", "input_scale", np.zeros(1, np.float32), "positive"),
        ("fp8-static", "input_scale", np.ones(2, np.float32), "shape"),
        ("fp8-static", "weight_scale", np.ones(2, np.float32), "shape"),
        ("fp8-block", "weight_scale", np.ones((2, 1), np.float32), "shape"),
        ("nvfp4", "weight_packed", np.zeros((8, 64), np.int32), "dtype int32"),
        ("nvfp4", "weight_packed", np.zeros((8, 60), np.uint8), "do not divide"),
        ("nvfp4", "weight_scale", np.ones((8, 8), np.float32), "dtype float32"),
        ("nvfp4", "weight_scale", np.full((8, 8), np.nan, ml_dtypes.float8_e4m3fn), "NaN"),
        ("nvfp4", "weight_global_scale", None, "weight_global_scale' is missing"),
        ("nvfp4", "weight_global_scale", np.zeros(1, np.float32), "positive"),
        ("nvfp4", "weight_global_scale", np.full(1, np.nan, np.float32), "positive"),
        ("nvfp4", "input_global_scale", None, "input_global_scale' is missing"),
        ("nvfp4", "input_global_scale", np.full(1, -1, np.float32), "positive"),
        ("mxfp4", "weight_scale", np.full((8, 4), 255, np.uint8), "NaN"),
        ("mxfp4", "weight_scale", np.zeros((8, 4), np.int8), "dtype int8"),
        ("mxfp8", "weight_scale", np.zeros((8, 3), np.uint8), "shape"),
        ("w8a8", "weight_scale", np.ones((4, 1), np.float32), "shape"),
        ("w8a8-asym", "weight_zero_point", None, "weight_zero_point' is missing"),
        ("w4a8", "weight", np.full((8, 128), 8, np.int8), "outside -8..7"),
        ("w4a8", "weight", np.zeros((8, 128), ml_dtypes.float8_e4m3fn), "dtype float8"),
    ],
)
def test_lies_are_refused_by_name(
    name: str, part: str, array: npt.NDArray[Any] | None, message: str
) -> None:
    stored = encode_weight("a", random_weight(SCHEMES[name], 8, 128))
    stored = {k: v for k, v in stored.items() if k != f"a.{part}"}
    if array is not None:
        stored[f"a.{part}"] = array
    with pytest.raises(FileFormatError, match=f"'a'.*{message}"):
        decode(quantization_config({"a": SCHEMES[name]}), stored)


@pytest.mark.parametrize(
    ("name", "side", "change", "message"),
    [
        ("nvfp4", "weights", {"group_size": 32}, "no combination"),
        ("nvfp4", "weights", {"type": "int"}, "no combination"),
        ("nvfp4", "weights", {"symmetric": False}, "no combination"),
        ("mxfp4", "weights", {"num_bits": 8}, "no combination"),
        ("mxfp8", "weights", {"group_size": 16}, "no combination"),
        ("fp8-block", "weights", {"block_structure": [128]}, "block_structure"),
        ("fp8-block", "weights", {"block_structure": [0, 128]}, "block_structure 0"),
        ("fp8-block", "weights", {"block_structure": "128x128"}, "block_structure"),
        ("fp8-dynamic", "input_activations", {"num_bits": 6}, "rounds its inputs to 6-bit"),
        ("fp8-dynamic", "input_activations", {"type": ["int"]}, "rounds its inputs"),
        ("fp8-dynamic", "input_activations", {"symmetric": False}, "symmetric False"),
        ("fp8-dynamic", "input_activations", {"strategy": "channel"}, "strategy 'channel'"),
        ("fp8-dynamic", "input_activations", {"dynamic": "global"}, "dynamic 'global'"),
        ("fp8-dynamic", "output_activations", {"num_bits": 8}, "rounds its outputs"),
        ("fp8-dynamic", "format", "mxfp6-pack-quantized", "mxfp6"),
        ("fp8-dynamic", "format", 8, "format 8"),
        ("fp8-dynamic", "input_activations", 8, "malformed input_activations"),
    ],
)
def test_bad_groups(name: str, side: str, change: Any, message: str) -> None:
    config = quantization_config({"a": SCHEMES[name]})
    group = config["config_groups"]["group_0"]
    old = group[side]
    group[side] = (
        {**old, **change} if isinstance(old, dict) and isinstance(change, dict) else change
    )
    with pytest.raises(InputError, match=rf"checkpoint.*group_0.*{message}"):
        decode(config, {})


def test_the_layout_in_the_file_must_be_the_one_of_the_config() -> None:
    stored = encode_weight("a", random_weight(SCHEMES["fp8-dynamic"], 8, 64))
    with pytest.raises(FileFormatError, match=r"'a'.*stored as 'weight'.*nvfp4"):
        decode(quantization_config({"a": SCHEMES["nvfp4"]}), stored)


def test_other_ways_to_say_the_same() -> None:
    """Scalars without a dimension, scales per row as a vector, MX scales in their own dtype."""
    scheme = SCHEMES["fp8-static"]
    tensor = random_weight(scheme, 8, 64)
    stored = encode_weight("a", tensor)
    stored["a.weight_scale"] = stored["a.weight_scale"].reshape(())
    stored["a.input_scale"] = stored["a.input_scale"].astype(ml_dtypes.bfloat16).reshape(())
    assert_same(decode(quantization_config({"a": scheme}), stored)["a"], tensor)
    tensor = random_weight(SCHEMES["fp8-dynamic"], 8, 64)
    stored = encode_weight("a", tensor)
    stored["a.weight_scale"] = stored["a.weight_scale"].reshape(-1)
    assert_same(decode(quantization_config({"a": tensor.scheme}), stored)["a"], tensor)
    tensor = random_weight(SCHEMES["mxfp8"], 8, 64)
    stored = encode_weight("a", tensor)
    stored["a.weight_scale"] = stored["a.weight_scale"].view(ml_dtypes.float8_e8m0fnu)
    assert_same(decode(quantization_config({"a": tensor.scheme}), stored)["a"], tensor)


def test_zero_points_of_old_writers_are_zeros() -> None:
    tensor = random_weight(SCHEMES["w8a8-static"], 8, 64)
    config, stored = quantization_config({"a": tensor.scheme}), encode_weight("a", tensor)
    for part, shape in (("weight_zero_point", (8, 1)), ("input_zero_point", (1,))):
        zeros = {f"a.{part}": np.zeros(shape, np.int8)}
        assert_same(decode(config, stored | zeros)["a"], tensor)
        with pytest.raises(FileFormatError, match=r"'a'.*zero points that are not 0"):
            decode(config, stored | {f"a.{part}": np.ones(shape, np.int8)})


def test_packed_integers_with_integer_activations_are_read_too() -> None:
    scheme = IntScheme(4, True, PerGroup(32))
    tensor = random_weight(scheme, 8, 64)
    config = quantization_config({"a": scheme})
    args = {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True}
    config["config_groups"]["group_0"]["input_activations"] = args
    read = decode(config, encode_weight("a", tensor))["a"]
    assert read.scheme == IntScheme(4, True, PerGroup(32), ActivationScheme("int8"))
    np.testing.assert_array_equal(read.codes, tensor.codes)
    assert format_of(read.scheme) == "int-quantized"
