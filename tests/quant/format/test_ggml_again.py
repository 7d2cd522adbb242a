"""Integers of other schemes as ggml's blocks: the same numbers where they fit, else near ones."""

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.format.ggml_again import exact_blocks, relative_rms, rounded_again
from quant.format.ggml_search import round_blocks
from quant.format.gguf_types import (
    IQ4_NL,
    Q2_K,
    Q4_0,
    Q4_1,
    Q4_K,
    Q5_0,
    Q5_1,
    Q5_K,
    Q6_K,
    Q8_0,
    GgmlType,
)
from quant.format.scheme import IntScheme, PerChannel, PerGroup
from quant.format.tensor import QuantizedTensor

ROWS, COLUMNS = 6, 512


def integers(
    scheme: IntScheme, seed: int = 0, dtype: Any = ml_dtypes.bfloat16, negative: bool = False
) -> QuantizedTensor:
    """Random codes that use their whole range, with scales of the same order in each row."""
    random = np.random.default_rng(seed)
    groups = scheme.groups(COLUMNS)
    codes = random.integers(scheme.qmin, scheme.qmax + 1, (ROWS, COLUMNS)).astype(np.int8)
    scale = np.exp(random.normal(-4, 0.3, (ROWS, groups)))
    if negative:
        scale *= random.choice([-1, 1], scale.shape)
    zero_point = None
    if not scheme.symmetric:
        span = scheme.qmin // 2, scheme.qmax // 2 + 1
        zero_point = random.integers(*span, (ROWS, groups)).astype(np.int8)
    return QuantizedTensor(scheme, codes, scale.astype(dtype), zero_point)


@pytest.mark.parametrize("kind", [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0], ids=str)
@pytest.mark.parametrize("negative", [False, True])
def test_symmetric_integers_fit_every_type_of_their_bits(kind: GgmlType, negative: bool) -> None:
    weight = integers(IntScheme(4, True, PerGroup(64)), negative=negative)
    exact = exact_blocks("w", kind, weight)
    assert exact is not None and exact.scheme.ggml_type == kind.name
    assert np.array_equal(exact.dequantize(), weight.dequantize())


def test_what_has_no_place_is_said_to_have_none() -> None:
    """Too many bits, too few, scales that float16 does not have, groups inside a block."""
    four, eight = IntScheme(4, True, PerGroup(64)), IntScheme(8, True, PerChannel())
    assert exact_blocks("w", Q4_0, integers(eight)) is None
    assert exact_blocks("w", Q8_0, integers(four, dtype=np.float32)) is None
    assert exact_blocks("w", Q4_K, integers(four)) is None
    assert exact_blocks("w", IQ4_NL, integers(four)) is None
    assert exact_blocks("w", Q4_0, integers(IntScheme(4, False, PerGroup(64)))) is None
    assert exact_blocks("w", Q4_0, integers(IntScheme(4, True, PerGroup(16)))) is None


def test_nothing_is_changed_where_the_blocks_are_there() -> None:
    random = np.random.default_rng(3)
    weight = round_blocks("w", Q4_K, random.standard_normal((2, 512)).astype(np.float32))
    exact = exact_blocks("w", Q4_K, weight)
    assert exact is not None and exact.blocks is not None and weight.blocks is not None
    assert np.array_equal(exact.blocks.data, weight.blocks.data)


def steps_off(weight: QuantizedTensor, found: QuantizedTensor) -> npt.NDArray[np.float32]:
    """How far each value is from where it was, in steps of its source."""
    scale = np.abs(weight.effective_scale()[:, weight.column_groups()])
    off: npt.NDArray[np.float32] = np.abs(found.dequantize() - weight.dequantize()) / scale
    return off


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("kind", "scale_bits"), [(Q4_K, 6), (Q5_K, 6)], ids=str)
@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from([32, 64, 128]))
@settings(max_examples=10, deadline=None)
def test_nested_types_keep_codes_and_round_scales(
    kind: GgmlType, scale_bits: int, symmetric: bool, seed: int, size: int
) -> None:
    """A scale is off by half of one in 2**bits parts of the largest of its block, a minimum by the
    like of the largest minimum; scales within a factor of e**1.8 put that below 1.2 steps of 15 for
    the farthest code, and well below half a step for nearly all."""
    weight = integers(IntScheme(4, symmetric, PerGroup(size)), seed, negative=symmetric)
    off = steps_off(weight, rounded_again("w", kind, weight))
    assert (off < 0.5).mean() > 0.99
    assert relative_rms(weight, rounded_again("w", kind, weight)) < 0.03


@pytest.mark.parametrize("kind", [Q4_K, Q5_K, Q6_K], ids=str)
def test_the_sources_scales_are_worth_looking_at(kind: GgmlType) -> None:
    weight = integers(IntScheme(4, True, PerGroup(64)), 7, negative=True)
    blind = round_blocks("w", kind, weight.dequantize())
    assert relative_rms(weight, rounded_again("w", kind, weight)) < 0.8 * relative_rms(
        weight, blind
    )


@pytest.mark.parametrize("kind", [Q2_K, Q4_1, Q4_K, Q6_K, IQ4_NL], ids=str)
def test_rows_can_be_rounded_again_part_by_part(kind: GgmlType) -> None:
    weight = integers(IntScheme(8, True, PerChannel()), 1)
    whole = rounded_again("w", kind, weight)
    part = rounded_again("w", kind, weight.take_rows(np.arange(2, 5, dtype=np.intp)))
    assert np.array_equal(whole.codes[2:5], part.codes)
    assert np.array_equal(whole.dequantize()[2:5], part.dequantize())


def test_the_error_is_relative_and_of_all_numbers() -> None:
    weight = integers(IntScheme(4, True, PerGroup(64)))
    wide = weight.dequantize().astype(np.float64)
    moved = replace(weight, scale=weight.scale * np.float32(1.01))
    off = moved.dequantize() - wide
    expected = np.sqrt((off**2).sum() / (wide**2).sum())
    assert relative_rms(weight, moved) == pytest.approx(expected, rel=1e-6)
    assert relative_rms(np.zeros((2, 3), np.float32), np.ones((2, 3), np.float32)) == 0
