"""GPTQ v1 and v2 and AWQ: golden words, round trips, and lies refused by name."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from quant.format import awq, compressed_tensors, gptq
from quant.format.awq import AwqCodec
from quant.format.errors import FileFormatError, InputError, UnsupportedModelError
from quant.format.gptq import GptqCodec
from quant.format.tensor import QuantizedTensor
from tests.quant.format.random_weights import assert_same, int_scheme, random_weight

Stored = dict[str, npt.NDArray[Any]]


def gptq_config(
    bits: int, group_size: int, symmetric: bool = True, version: int = 1, **more: Any
) -> dict[str, Any]:
    layout = "gptq" if version == 1 else "gptq_v2"
    return {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group_size,
        "sym": symmetric,
        "desc_act": False,
        "checkpoint_format": layout,
    } | more


def awq_config(**more: Any) -> dict[str, Any]:
    return {"bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"} | more


def decode_gptq(config: Mapping[str, Any], stored: Stored) -> QuantizedTensor:
    codec = GptqCodec(config, "checkpoint")
    (weight,) = codec.find(stored, stored.__getitem__)
    return codec.decode(weight, stored.__getitem__)


def decode_awq(config: Mapping[str, Any], stored: Stored) -> QuantizedTensor:
    codec = AwqCodec(config, "checkpoint")
    (weight,) = codec.find(stored, stored.__getitem__)
    return codec.decode(weight, stored.__getitem__)


def hex_words(words: npt.NDArray[np.int32]) -> set[str]:
    return {f"{word & 0xFFFFFFFF:08x}" for word in words.ravel().tolist()}


@pytest.mark.parametrize(
    ("bits", "version", "words"),
    [
        (4, 1, {"77777777"}),
        (4, 2, {"88888888"}),
        (8, 1, {"7f7f7f7f"}),
        (8, 2, {"80808080"}),
        (2, 1, {"55555555"}),
        (2, 2, {"aaaaaaaa"}),
        (3, 1, {"db6db6db", "b6db6db6", "6db6db6d"}),
        (3, 2, {"24924924", "49249249", "92492492"}),
    ],
)
def test_golden_symmetric_zeros(bits: int, version: int, words: set[str]) -> None:
    tensor = random_weight(int_scheme(bits, True, None), 32, 32, scale_dtype=np.float16)
    stored = gptq.encode_weight("a", tensor, version)
    assert hex_words(stored["a.qzeros"]) == words


def test_golden_qweight() -> None:
    scheme = int_scheme(4, True, None)
    codes = np.arange(-8, 0, dtype=np.int8)[None]
    tensor = QuantizedTensor(scheme, codes, np.ones((1, 1), np.float16))
    assert hex_words(gptq.encode_weight("a", tensor, 1)["a.qweight"]) == {"76543210"}


def test_golden_awq_order() -> None:
    codes = np.arange(8, dtype=np.uint8)[:, None]
    assert hex_words(awq.pack_interleaved(codes)) == {"75316420"}
    word = np.array([[0x75316420]], dtype=np.int32)
    np.testing.assert_array_equal(awq.unpack_interleaved(word), codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("size", [None, 32, 64])
def test_gptq_round_trip(bits: int, symmetric: bool, version: int, size: int | None) -> None:
    """64 does not divide 96 columns: the last group is short, as GPTQ files may have it."""
    scheme = int_scheme(bits, symmetric, size)
    tensor = random_weight(scheme, 32, 96, scale_dtype=np.float16, lowest_zero=version % 2)
    config = gptq_config(bits, size or -1, symmetric, version)
    assert_same(decode_gptq(config, gptq.encode_weight("m.a", tensor, version)), tensor)


@pytest.mark.parametrize("version", [1, 2])
def test_gptq_values_by_the_formula(version: int) -> None:
    """w = (code - zero) * scale with unsigned numbers taken out of the words one by one."""
    tensor = random_weight(int_scheme(4, False, 32), 16, 64, scale_dtype=np.float16, lowest_zero=1)
    stored = gptq.encode_weight("a", tensor, version)
    index = np.random.default_rng(1).permutation(np.arange(64) // 32).astype(np.int32)
    stored["a.g_idx"] = index
    expected = np.empty((16, 64), np.float32)
    for row in range(16):
        for column in range(64):
            word = int(stored["a.qweight"][column // 8, row]) & 0xFFFFFFFF
            zeros = int(stored["a.qzeros"][index[column], row // 8]) & 0xFFFFFFFF
            code = word >> 4 * (column % 8) & 15
            zero = (zeros >> 4 * (row % 8) & 15) + (1 if version == 1 else 0)
            scale = np.float32(stored["a.scales"][index[column], row])
            expected[row, column] = np.float32(code - zero) * scale
    config = gptq_config(4, 32, False, version, desc_act=True)
    np.testing.assert_array_equal(decode_gptq(config, stored).dequantize(), expected)


def test_awq_values_by_the_formula() -> None:
    tensor = random_weight(int_scheme(4, False, 32), 16, 64, scale_dtype=np.float16)
    stored = awq.encode_weight("a", tensor)
    nibble_of_column = [0, 4, 1, 5, 2, 6, 3, 7]
    expected = np.empty((16, 64), np.float32)
    for row in range(16):
        shift = 4 * nibble_of_column[row % 8]
        for column in range(64):
            code = int(stored["a.qweight"][column, row // 8]) >> shift & 15
            zero = int(stored["a.qzeros"][column // 32, row // 8]) >> shift & 15
            scale = np.float32(stored["a.scales"][column // 32, row])
            expected[row, column] = np.float32(code - zero) * scale
    np.testing.assert_array_equal(decode_awq(awq_config(), stored).dequantize(), expected)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("size", [32, None])
def test_awq_round_trip(symmetric: bool, size: int | None) -> None:
    tensor = random_weight(int_scheme(4, symmetric, size), 16, 64, scale_dtype=np.float16)
    config = awq_config(zero_point=not symmetric, group_size=size or -1)
    assert_same(decode_awq(config, awq.encode_weight("m.a", tensor)), tensor)


def test_the_compressed_tensors_package_converts_awq_to_the_same_words() -> None:
    torch = pytest.importorskip("torch")
    package = pytest.importorskip("compressed_tensors.entrypoints.convert.converters.autoawq")
    tensor = random_weight(int_scheme(4, False, 32), 16, 64, scale_dtype=np.float16)
    stored = {
        name: torch.from_numpy(array.copy())
        for name, array in awq.encode_weight("m.q_proj", tensor).items()
    }
    converter = package.AutoAWQConverter(group_size=32, targets=["re:.*q_proj"])
    theirs = converter.process(stored)
    ours = compressed_tensors.encode_weight("m.q_proj", tensor)
    assert set(theirs) == set(ours)
    for name, array in ours.items():
        np.testing.assert_array_equal(theirs[name].numpy(), array)


def test_zero_filled_index_of_early_writers_means_the_plain_order() -> None:
    tensor = random_weight(int_scheme(4, True, 32), 8, 64, scale_dtype=np.float16)
    stored = gptq.encode_weight("a", tensor, 1) | {"a.g_idx": np.zeros(64, np.int32)}
    assert_same(decode_gptq(gptq_config(4, 32), stored), tensor)
    with pytest.raises(FileFormatError, match=r"'a'.*more than 32 columns"):
        decode_gptq(gptq_config(4, 32, desc_act=True), stored)


def test_v1_cannot_hold_an_unsigned_zero_point_of_0() -> None:
    scheme = int_scheme(4, False, None)
    codes, scale = np.zeros((8, 8), np.int8), np.ones((8, 1), np.float16)
    tensor = QuantizedTensor(scheme, codes, scale, np.full((8, 1), -8, np.int8))
    with pytest.raises(UnsupportedModelError, match="'a'"):
        gptq.encode_weight("a", tensor, 1)
    stored = gptq.encode_weight("a", tensor, 2)
    assert_same(decode_gptq(gptq_config(4, -1, False, 2), stored), tensor)


@pytest.mark.parametrize(
    ("part", "array", "message"),
    [
        ("scales", None, "scales' is missing"),
        ("scales", np.full((2, 16), np.nan, np.float16), "NaN"),
        ("scales", np.ones((3, 16), np.float16), "shape"),
        ("qzeros", None, "qzeros' is missing"),
        ("qzeros", np.full((2, 2), -1, np.int32), "zero point is 16"),
        ("qzeros", np.zeros((2, 3), np.int32), "shape"),
        ("g_idx", np.full(64, 2, np.int32), "g_idx"),
        ("g_idx", np.full(64, -1, np.int32), "g_idx"),
        ("g_idx", np.zeros(63, np.int32), "shape"),
        ("qweight", np.zeros((8, 16), np.int64), "dtype int64"),
        ("qweight", np.zeros((8,), np.int32), "shape"),
    ],
)
def test_gptq_lies_are_refused_by_name(
    part: str, array: npt.NDArray[Any] | None, message: str
) -> None:
    scheme = int_scheme(4, False, 32)
    tensor = random_weight(scheme, 16, 64, scale_dtype=np.float16, lowest_zero=1)
    stored = gptq.encode_weight("a", tensor, 1)
    stored.pop(f"a.{part}")
    if array is not None:
        stored[f"a.{part}"] = array
    with pytest.raises(FileFormatError, match=f"'a'.*{message}"):
        decode_gptq(gptq_config(4, 32, False), stored)


def test_symmetric_file_with_other_zero_points_is_refused() -> None:
    tensor = random_weight(int_scheme(4, False, 32), 16, 64, scale_dtype=np.float16)
    with pytest.raises(FileFormatError, match=r"'a'.*symmetric"):
        decode_gptq(gptq_config(4, 32, True, 2), gptq.encode_weight("a", tensor, 2))
    with pytest.raises(FileFormatError, match=r"'a'.*symmetric"):
        decode_awq(awq_config(zero_point=False), awq.encode_weight("a", tensor))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"group_size": 0}, "group_size is 0"),
        ({"group_size": "128"}, "group_size"),
        ({"bits": 5}, "bits 5"),
        ({"sym": None}, "sym"),
        ({"checkpoint_format": "marlin"}, "marlin"),
        ({"dynamic": {"-:lm_head": {}}}, "dynamic"),
        ({"pack_dtype": "int64"}, "int64"),
    ],
)
def test_gptq_config_that_is_wrong_or_unknown(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        GptqCodec(gptq_config(4, 32) | change, "checkpoint")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"group_size": 0}, "group_size"), ({"bits": 3}, "3 bits"), ({"version": "gemv"}, "gemv")],
)
def test_awq_config_that_is_wrong_or_unknown(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AwqCodec(awq_config() | change, "checkpoint")


def test_awq_group_size_must_divide() -> None:
    tensor = random_weight(int_scheme(4, False, 32), 16, 64, scale_dtype=np.float16)
    stored = awq.encode_weight("a", tensor)
    with pytest.raises(FileFormatError, match=r"'a'.*do not divide"):
        decode_awq(awq_config(group_size=48), stored)
