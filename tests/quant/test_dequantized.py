"""Quantizing a model that is quantized: refused, or by request taken for what it stands for."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.format.checkpoint import open_checkpoint
from quant.format.dequantized import dequantized
from quant.format.errors import FileFormatError, UnsupportedModelError
from quant.format.kv_cache import KvCacheScheme
from quant.format.scheme import CodebookScheme, IntScheme, PerChannel, PerGroup, QuantizedScheme
from quant.format.tensor import QuantizedTensor
from quant.preflight import prepare
from quant.recipe import load_recipe
from quant.rounding_algorithms.rtn import round_to_nearest
from quant.run import quantize_checkpoint
from quant.skeleton import to_torch
from quant.tasks import FloatDtype
from tests.quant.format.random_weights import WITH_ACTIVATIONS
from tests.quant.format.tiny_quantized import MLP, quantized_llama
from tests.tiny import TEXT, tiny_checkpoint

RANGE = ("scales=range", "algorithm=rtn", "balance=null", "scheme.group_size=32")
AGAIN = (*RANGE, "dequantize_source=true")
NUMPY = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}


def again(tensor: QuantizedTensor, dtype: FloatDtype) -> QuantizedTensor:
    """Dequantized to `dtype` and rounded to nearest once more."""
    stored = torch.from_numpy(tensor.dequantize().astype(NUMPY[dtype]).astype(np.float32))
    (result,) = round_to_nearest([stored], tensor.scheme, dtype, scales="range")
    return result.tensor


def rounded(seed: int, scheme: QuantizedScheme, dtype: FloatDtype) -> QuantizedTensor:
    rng = np.random.default_rng(seed)
    size = 10.0 ** rng.uniform(-3, 1, (6, 1))
    weight = (rng.standard_normal((6, 64)) * size).astype(np.float32)
    (result,) = round_to_nearest([torch.from_numpy(weight)], scheme, dtype, scales="range")
    return result.tensor


def full(tensor: QuantizedTensor) -> npt.NDArray[np.bool_]:
    """bool [out, in]: whether the codes of its group, and zero, reach from end to end.

    A scale that was rounded up, or kept from becoming subnormal, leaves out codes at the ends of
    an asymmetric range; the next scale is then another one.
    """
    if tensor.zero_point is None:
        return np.ones(tensor.shape, np.bool_)
    assert isinstance(tensor.scheme, IntScheme)
    groups = tensor.codes.reshape(len(tensor.codes), -1, 32)
    low = np.minimum(groups.min(-1), tensor.zero_point) == tensor.scheme.qmin
    high = np.maximum(groups.max(-1), tensor.zero_point) == tensor.scheme.qmax
    return np.repeat(low & high, 32, axis=1)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**32),
    st.sampled_from([2, 3, 4, 5, 6, 8]),
    st.booleans(),
    st.sampled_from(["float32", "float16"]),
)
def test_integers_come_back_from_their_floats(
    seed: int, bits: int, symmetric: bool, dtype: FloatDtype
) -> None:
    """Range and scale are those of the largest code, so that each number is near its level.

    With a relative error u for each rounding (scale, largest number, number), a level of at most
    2**bits is off by 3 u 2**bits: below half a step for float16 (u = 2**-11) as for float32.
    """
    scheme = IntScheme(bits, symmetric, PerGroup(32))
    first = rounded(seed, scheme, dtype)
    second = again(first, dtype)
    same = full(first)
    np.testing.assert_array_equal(second.codes[same], first.codes[same])
    if first.zero_point is not None:
        assert second.zero_point is not None
        np.testing.assert_array_equal(
            second.zero_point[same[:, ::32]], first.zero_point[same[:, ::32]]
        )


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([2, 3, 4, 5, 6, 8]), st.booleans())
def test_in_bfloat16_up_to_6_bits_and_8_off_by_few(seed: int, bits: int, symmetric: bool) -> None:
    """u = 2**-9: 3 u 2**bits stays below half a step for 6 bits. With 8, a level of up to 127 is
    off by less than one step; one of up to 255 by less than 1.5, and so is the zero point."""
    scheme = IntScheme(bits, symmetric, PerGroup(32))
    first = rounded(seed, scheme, "bfloat16")
    second = again(first, "bfloat16")
    off = np.abs(second.codes.astype(int) - first.codes.astype(int))[full(first)]
    assert off.max(initial=0) <= (0 if bits <= 6 else 1 if symmetric else 2)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(["float32", "bfloat16"]))
def test_eight_bit_floats_come_back(seed: int, dtype: FloatDtype) -> None:
    """Scales have 8 bits, so that the largest number gives the same one again; the middle between
    two neighbours is at least 1/32 away from both."""
    first = rounded(seed, CodebookScheme("e4m3", PerChannel()), dtype)
    np.testing.assert_array_equal(again(first, dtype).codes, first.codes)


def test_refused_by_default_with_a_way_out(tmp_path: Path) -> None:
    quantized_llama(tmp_path / "model", dict.fromkeys(MLP, IntScheme(4, True, PerGroup(32))))
    with pytest.raises(UnsupportedModelError, match="set dequantize_source=true"):
        prepare(tmp_path / "model", load_recipe("w4a16"))


@pytest.mark.parametrize("output_format", ["compressed-tensors", "gptq", "awq"])
def test_a_dequantized_model_quantizes_to_the_same_codes(
    tmp_path: Path, output_format: str
) -> None:
    """Every format of float32 models; the second time always as compressed-tensors."""
    model = tiny_checkpoint(tmp_path / "model", "llama", dtype="float32")
    first = load_recipe("w4a16", [*RANGE, f"format={output_format}"])
    quantize_checkpoint(model, tmp_path / "first", first)
    report = quantize_checkpoint(
        tmp_path / "first", tmp_path / "second", load_recipe("w4a16", AGAIN)
    )
    one, two = open_checkpoint(tmp_path / "first"), open_checkpoint(tmp_path / "second")
    assert list(one.names()) and set(one.names()) == set(two.names())
    for name in one.names():
        before, after = one.load(name), two.load(name)
        if isinstance(before, QuantizedTensor):
            assert isinstance(after, QuantizedTensor)
            np.testing.assert_array_equal(after.codes, before.codes)
        else:
            assert np.asarray(before).tobytes() == np.asarray(after).tobytes()
    assert two.quant_method == "compressed-tensors"
    assert one.config.keys() == two.config.keys()
    assert f"({one.quant_method})" in report.notes[0] and "stays lost" in report.notes[0]


@pytest.mark.parametrize("name", ["w8a8-static", "fp8-block", "nvfp4", "mxfp4"])
def test_every_scheme_is_seen_as_the_floats_it_stands_for(tmp_path: Path, name: str) -> None:
    """And what is dropped is told."""
    quantized = quantized_llama(
        tmp_path / "model",
        dict.fromkeys(MLP, WITH_ACTIVATIONS[name]),
        kv_cache=KvCacheScheme(),
        wide=True,
    )
    stored = open_checkpoint(tmp_path / "model")
    seen = dequantized(stored, "bfloat16")
    assert seen.quant_method is None and seen.kv_cache is None
    assert seen.weight_files() == stored.weight_files()
    for weight, tensor in quantized.items():
        expected = tensor.dequantize().astype(ml_dtypes.bfloat16)
        assert seen.load_raw(weight).tobytes() == expected.tobytes()
        assert seen.shape(weight) == tensor.shape
    prepared = prepare(tmp_path / "model", load_recipe("w4a16", AGAIN))
    text = " ".join(prepared.plan.notes)
    assert "rounded inputs" in text and "KV cache are dropped" in text
    assert prepared.plan.source_bytes == sum(stored.stored_bytes(n) for n in stored.names())


def test_calibrated_and_rotated_too(tmp_path: Path) -> None:
    """The view stands where a float checkpoint stands, below a rotation and the layer loop."""
    model = tiny_checkpoint(tmp_path / "model", "llama", dtype="bfloat16")
    quantize_checkpoint(model, tmp_path / "first", load_recipe("w4a16", [*RANGE, "format=gptq"]))
    (tmp_path / "t.txt").write_text(TEXT, encoding="utf-8")
    small = ("calibration.samples=4", "calibration.tokens=16", "scheme.group_size=32")
    recipe = load_recipe("w4a16", [*small, "rotation={}", "dequantize_source=true"])
    quantize_checkpoint(tmp_path / "first", tmp_path / "second", recipe, str(tmp_path / "t.txt"))
    config = json.loads((tmp_path / "second" / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"
    first, second = open_checkpoint(tmp_path / "first"), open_checkpoint(tmp_path / "second")
    name = "model.layers.0.mlp.down_proj.weight"
    before, after = first.load(name), second.load(name)
    assert isinstance(before, QuantizedTensor) and isinstance(after, QuantizedTensor)
    assert not torch.equal(to_torch(before.codes), to_torch(after.codes)), "it was not rotated"


def test_numbers_beyond_float16_are_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """bfloat16 scales reach further than float16."""
    quantized_llama(tmp_path / "model", dict.fromkeys(MLP, IntScheme(4, True, PerGroup(32))))
    stored = open_checkpoint(tmp_path / "model")
    name = "model.layers.0.mlp.up_proj.weight"
    honest = stored.load(name)
    assert isinstance(honest, QuantizedTensor)
    honest.scale[0, 0] = 1e6
    honest.codes[0, 0] = 7
    monkeypatch.setattr(stored, "load", lambda _: honest)
    with pytest.raises(FileFormatError, match="float16 cannot hold"):
        dequantized(stored, "float16").load(name)
