"""Fine-grained FP8 files: both ways, to the byte, and what is wrong with them said by name."""

import json
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.format.errors import FileFormatError, InputError, UnsupportedModelError
from quant.format.float_rounding import fp8_scale
from quant.format.fp8 import (
    Fp8Codec,
    encode_weight,
    quantization_config,
    why_not,
)
from quant.format.scheme import (
    ActivationScheme,
    CodebookScheme,
    FloatScheme,
    IntScheme,
    PerBlock,
    PerChannel,
    PerGroup,
    PerTensor,
    QuantizedScheme,
)
from quant.format.tensor import QuantizedTensor
from tests.quant.format.random_weights import (
    WITH_ACTIVATIONS,
    assert_same,
    from_torch,
    random_weight,
)

Stored = dict[str, npt.NDArray[Any]]
BLOCK = WITH_ACTIVATIONS["fp8-block"]
STATIC = WITH_ACTIVATIONS["fp8-static"]
SCHEMES: dict[str, QuantizedScheme] = {
    "block": BLOCK,
    "block-ue8m0": CodebookScheme(
        "e4m3", PerBlock(128, 128), "e8m0", ActivationScheme("e4m3", PerGroup(128))
    ),
    "tensor": CodebookScheme("e4m3", PerTensor(), activation=ActivationScheme("e4m3")),
    "static": STATIC,
}


def decode(config: Mapping[str, Any], stored: Stored) -> dict[str, QuantizedTensor]:
    codec = Fp8Codec(config, "checkpoint")
    found = codec.find(stored, stored.__getitem__)
    return {weight.module: codec.decode(weight, stored.__getitem__) for weight in found}


@pytest.mark.parametrize("name", SCHEMES)
@given(
    rows=st.one_of(st.integers(1, 128), st.just(256), st.just(384)),
    groups=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_round_trip(name: str, rows: int, groups: int, seed: int) -> None:
    tensor = random_weight(SCHEMES[name], rows, 128 * groups, scale_dtype=np.float32, seed=seed)
    stored = encode_weight("m.q_proj", tensor)
    config = json.loads(json.dumps(quantization_config({"m.q_proj": tensor.scheme})))
    assert_same(decode(config, stored)["m.q_proj"], tensor)


def test_names_dtypes_and_shapes() -> None:
    stored = encode_weight("a", random_weight(BLOCK, 384, 256, scale_dtype=np.float32))
    forms = {name: (array.dtype.name, array.shape) for name, array in stored.items()}
    assert forms == {
        "a.weight": ("float8_e4m3fn", (384, 256)),
        "a.weight_scale_inv": ("float32", (3, 2)),
    }
    stored = encode_weight("a", random_weight(STATIC, 8, 256, scale_dtype=np.float32))
    forms = {name: (array.dtype.name, array.shape) for name, array in stored.items()}
    assert forms == {
        "a.weight": ("float8_e4m3fn", (8, 256)),
        "a.weight_scale_inv": ("float32", ()),
        "a.activation_scale": ("float32", ()),
    }


def test_the_scale_multiplies_in_spite_of_its_name() -> None:
    codes = np.array([[0x7E, 0x38]], np.uint8).view(np.int8)  # 448 and 1
    tensor = QuantizedTensor(STATIC, codes, np.array([[0.5]], np.float32), input_scale=1.0)
    read = decode(quantization_config({"a": STATIC}), encode_weight("a", tensor))["a"]
    np.testing.assert_array_equal(read.dequantize(), [[224, 0.5]])


def test_config() -> None:
    config = quantization_config(
        {"m.q_proj": BLOCK, "m.k_proj": FloatScheme("bfloat16"), "m.embed_tokens": BLOCK}
    )
    assert config == {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": ["m.k_proj", "lm_head"],
        "modules_to_convert": ["m.embed_tokens"],
    }
    config = quantization_config({"lm_head": SCHEMES["block-ue8m0"]})
    assert (config["scale_fmt"], config["modules_to_not_convert"]) == ("ue8m0", [])
    config = quantization_config({"m.q_proj": STATIC})
    assert (config["activation_scheme"], config["weight_block_size"]) == ("static", None)


@pytest.mark.parametrize(
    ("scheme", "shape", "message"),
    [
        (IntScheme(8, True, PerChannel()), (8, 128), "8-bit floats"),
        (CodebookScheme("e4m3", PerBlock(128, 128)), (8, 128), "rounds? inputs"),
        (WITH_ACTIVATIONS["fp8-dynamic"], (8, 128), "per block or per tensor"),
        (BLOCK, (192, 128), "192 outputs are not whole blocks"),
        (BLOCK, (8, 192), "192 inputs do not divide"),
        (
            CodebookScheme("e4m3", PerBlock(128, 128), activation=ActivationScheme("e4m3")),
            (8, 128),
            "cannot say e4m3-dynamic-token",
        ),
        (
            CodebookScheme("e4m3", PerBlock(128, 128), activation=STATIC.activation),
            (8, 128),
            "need dynamic activations",
        ),
        (
            CodebookScheme("e4m3", PerTensor(), "e8m0", ActivationScheme("e4m3")),
            (8, 128),
            "power-of-two scales are per block",
        ),
    ],
)
def test_refusals(scheme: QuantizedScheme, shape: tuple[int, int], message: str) -> None:
    with pytest.raises(UnsupportedModelError, match=rf"'a'.*{message}"):
        encode_weight("a", random_weight(scheme, *shape))
    assert why_not(scheme, shape)


@pytest.mark.parametrize(
    ("name", "part", "array", "message"),
    [
        ("block", "weight_scale_inv", None, "weight_scale_inv' is missing"),
        ("block", "weight_scale_inv", np.ones((1, 2), np.float32), "shape"),
        ("block", "weight_scale_inv", np.ones((2, 2), np.float16), "dtype float16"),
        ("block", "weight_scale_inv", np.full((2, 2), np.nan, np.float32), "NaN"),
        ("block", "activation_scale", np.ones((), np.float32), "says dynamic"),
        ("block", "weight", np.zeros(4, ml_dtypes.float8_e4m3fn), "shape"),
        ("block", "weight", np.full((256, 256), np.nan, ml_dtypes.float8_e4m3fn), "code is NaN"),
        ("block-ue8m0", "weight_scale_inv", np.full((2, 2), 255, np.uint8), "NaN"),
        ("static", "weight_scale_inv", np.ones((2, 2), np.float32), "shape"),
        ("static", "activation_scale", None, "activation_scale' is missing"),
        ("static", "activation_scale", np.zeros((), np.float32), "not positive"),
    ],
)
def test_lies_are_refused_by_name(
    name: str, part: str, array: npt.NDArray[Any] | None, message: str
) -> None:
    stored = encode_weight("a", random_weight(SCHEMES[name], 256, 256, scale_dtype=np.float32))
    stored = {k: v for k, v in stored.items() if k != f"a.{part}"}
    if array is not None:
        stored[f"a.{part}"] = array
    with pytest.raises(FileFormatError, match=f"'a'.*{message}"):
        decode(quantization_config({"a": SCHEMES[name]}), stored)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"fmt": "e5m2"}, "fmt 'e5m2'"),
        ({"activation_scheme": "none"}, "activation_scheme"),
        ({"weight_block_size": [128]}, "weight_block_size"),
        ({"weight_block_size": [128, 0]}, "weight_block_size"),
        ({"weight_block_size": [128, True]}, "weight_block_size"),
        ({"scale_fmt": "e5m2"}, "scale_fmt"),
        ({"scale_fmt": ["float"]}, "scale_fmt"),
        ({"expert_dtype": "fp4"}, "expert_dtype 'fp4'"),
    ],
)
def test_bad_config(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"checkpoint.*{message}"):
        decode(quantization_config({"a": BLOCK}) | change, {})


@pytest.mark.parametrize("scales", ["float", "ue8m0"])
def test_we_read_what_transformers_writes_and_write_the_same_bytes(scales: str) -> None:
    torch = pytest.importorskip("torch")
    integration = pytest.importorskip("transformers.integrations.finegrained_fp8")
    config = SimpleNamespace(weight_block_size=[128, 128], scale_fmt=scales)
    quantizer = integration.Fp8Quantize(SimpleNamespace(quantization_config=config))
    random = np.random.default_rng(0)
    values = random.standard_normal((256, 384)).astype(np.float32)
    values[:128, :128] = 0
    written = quantizer.convert({"a.weight": torch.from_numpy(values)})
    stored = {name: from_torch(tensor) for name, tensor in written.items()}
    scheme = SCHEMES["block" if scales == "float" else "block-ue8m0"]
    tensor = decode(quantization_config({"a": scheme}), stored)["a"]
    for name, array in encode_weight("a", tensor).items():
        assert (array.dtype, array.shape) == (stored[name].dtype, stored[name].shape)
        assert array.tobytes() == stored[name].tobytes(), name
    theirs = integration.Fp8Dequantize(None).convert(
        {"weight": written["a.weight"], "weight_scale_inv": written["a.weight_scale_inv"]}
    )["weight"]
    np.testing.assert_array_equal(
        tensor.dequantize().astype(ml_dtypes.bfloat16), from_torch(theirs.to(torch.bfloat16))
    )
    if scales == "float":
        blocks = np.abs(values).reshape(2, 128, 3, 128).max((1, 3))
        np.testing.assert_allclose(tensor.scale, fp8_scale(blocks), rtol=2**-22)
