"""Blocks of ggml's types beside the numbers that they were rounded from."""

from dataclasses import replace

import numpy as np
import pytest

from compile.compare import compare_weights
from quant.format.ggml_again import block_type, float_encoders, rounded_again
from quant.format.gguf_blocks import SCHEMES, decode
from quant.format.gguf_rounding import PLAINLY_ROUNDED, round_to
from quant.format.gguf_types import MXFP4, Q4_0, Q4_K, Q6_K, Q8_0, GgmlType
from quant.format.scheme import FloatScheme, IntScheme, PerChannel
from quant.format.tensor import QuantizedTensor


def floats(seed: int = 0) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((5, 256), np.float32) * np.float32(0.02)


def plain(kind: GgmlType) -> QuantizedTensor:
    tensor = decode(kind, round_to("w", kind, floats()), (5, 256))
    assert isinstance(tensor, QuantizedTensor)
    return tensor


@pytest.mark.parametrize("kind", SCHEMES, ids=str)
def test_what_our_encoders_make_of_floats_is_known_to_the_bit(kind: GgmlType) -> None:
    assert block_type(SCHEMES[kind]) == kind
    for encode in float_encoders(kind):
        found = compare_weights("w", floats(), encode(floats()))
        assert (found.state, found.encoder) == ("requantized", "ours")
        assert found.rms_error is not None and 0 < found.rms_error < 0.5


@pytest.mark.parametrize("kind", PLAINLY_ROUNDED, ids=str)
def test_so_is_the_plain_rounding(kind: GgmlType) -> None:
    found = compare_weights("w", floats(), plain(kind))
    assert (found.state, found.encoder) == ("requantized", "ours")


def test_another_grid_is_told() -> None:
    """The last bit of a scale leaves codes of few bits nearest."""
    tensor = plain(Q4_0)
    scale = tensor.scale.copy()
    scale.view(np.uint16)[2] ^= 1
    found = compare_weights("w", floats(), replace(tensor, scale=scale))
    assert (found.state, found.encoder) == ("requantized", "another")


@pytest.mark.parametrize("kind", [Q4_0, Q8_0, Q4_K, MXFP4], ids=str)
def test_codes_that_are_not_nearest_on_any_grid_are_found(kind: GgmlType) -> None:
    tensor = float_encoders(kind)[0](floats())
    codes = tensor.codes.copy()
    codes[3, 7] += -2 if codes[3, 7] > 1 else 2
    assert compare_weights("w", floats(), replace(tensor, codes=codes)).state == "different"


@pytest.mark.parametrize("kind", [Q4_K, Q6_K, MXFP4], ids=str)
def test_integers_rounded_again_are_known_to_the_bit(kind: GgmlType) -> None:
    random = np.random.default_rng(1)
    codes = random.integers(-128, 128, (5, 256)).astype(np.int8)
    scale = random.uniform(0.01, 0.02, (5, 1)).astype(np.float16)
    weight = QuantizedTensor(IntScheme(8, True, PerChannel()), codes, scale)
    again = rounded_again("w", kind, weight)
    found = compare_weights("w", weight, again)
    assert (found.state, found.encoder) == ("requantized", "ours")
    moved = replace(again, scale=again.scale.copy())
    moved.scale.view(np.uint8)[0, 0] ^= 1
    assert compare_weights("w", weight, moved).state == "different"


def test_floats_are_no_blocks() -> None:
    assert block_type(FloatScheme("float32")) is None
    assert block_type(IntScheme(4, True, PerChannel())) is None
