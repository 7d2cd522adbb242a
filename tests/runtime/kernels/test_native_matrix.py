"""Packed weights hold exactly the numbers that they were packed from."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.format.scheme import IntScheme, PerGroup, PerTensor
from quant.format.tensor import QuantizedTensor, Weight
from runtime.executors.cpu.weights import pack
from runtime.kernels.cpu._native import Matrix, Plan
from tests.runtime.kernels.harness import ISAS, POOLS, random_floats, run_rows
from tests.runtime.kernels.weights import (
    CODEBOOKS,
    K_TYPES,
    as_float32,
    codebook_weight,
    nested_weight,
    quantized,
    weights,
)


@given(weights(), st.sampled_from([1, 2]))
def test_a_packed_weight_is_worth_what_the_source_says(weight: Weight, threads: int) -> None:
    packed = pack(weight, POOLS[threads]).matrix
    assert packed.shape == weight.shape
    np.testing.assert_array_equal(packed.dequantize(), as_float32(weight))


def test_every_float16_is_read_right() -> None:
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16).reshape(512, 128)
    packed = pack(halves, POOLS[2]).matrix
    np.testing.assert_array_equal(packed.dequantize(), halves.astype(np.float32))


@pytest.mark.parametrize("kind", CODEBOOKS)
def test_every_code_is_read_right(kind: str) -> None:
    """All of a codebook's values, negative ones, zeros and subnormal ones too."""
    weight = codebook_weight(64, 256, kind)
    codes = np.tile(np.arange(256, dtype=np.uint8), (64, 1))
    codes = np.where((codes & 0x7F) == 0x7F, 0, codes) if "8" in kind else codes % 16
    weight = replace(weight, codes=codes.astype(np.uint8).view(np.int8))
    found = pack(weight, POOLS[1]).matrix.dequantize()
    np.testing.assert_array_equal(found, weight.dequantize())


@pytest.mark.parametrize(("kind", "size", "not_a_number"), [("mxfp4", 32, 255), ("nvfp4", 16, 127)])
def test_every_scale_of_eight_bits_is_read_right(kind: str, size: int, not_a_number: int) -> None:
    """Powers of two that are no normal float32 among them."""
    weight = codebook_weight(16, 16 * size, kind)
    scale = np.arange(256, dtype=np.uint8).reshape(16, 16)
    scale[scale == not_a_number] = 0
    scale[scale == 255] = 0
    small = np.where(weight.codes & 4, 1, weight.codes)  # up to 1.5: 2**127 times more overflows
    weight = replace(weight, scale=scale.view(weight.scale.dtype), codes=small.astype(np.int8))
    found = pack(weight, POOLS[1]).matrix.dequantize()
    np.testing.assert_array_equal(found, weight.dequantize())


@pytest.mark.parametrize("kind", CODEBOOKS)
def test_packed_codebooks_take_no_more_room_than_codes_and_scales(kind: str) -> None:
    """8-bit scales take 16, and those of blocks and tensors are repeated for each row."""
    weight = codebook_weight(128, 256, kind)
    codes = 128 * 256 * weight.scheme.num_bits // 8
    scales = 128 * weight.scheme.groups(256) * max(2, weight.scale.dtype.itemsize)
    assert pack(weight, POOLS[1]).matrix.nbytes == codes + scales


@pytest.mark.parametrize("type_name", K_TYPES)
def test_nested_scales_are_read_right_and_stay_nested(type_name: str) -> None:
    weight = nested_weight(130, 512, type_name)
    packed = pack(weight, POOLS[2]).matrix
    np.testing.assert_array_equal(packed.dequantize(), weight.dequantize())
    strips, groups = 3 * 64, weight.scheme.groups(512)
    codes = 512 // 2 if weight.scheme.num_bits <= 4 else 512
    sides = 1 if weight.minimum is None else 2
    assert packed.nbytes == strips * (codes + sides * (groups + 2 * 2))


def test_one_scale_and_zero_point_serve_a_whole_tensor() -> None:
    plain = quantized(70, 24, num_bits=8, group_size=None, kind="zero_point")
    assert plain.zero_point is not None
    scheme = replace(plain.scheme, granularity=PerTensor())
    weight = replace(plain, scheme=scheme, scale=plain.scale[:1], zero_point=plain.zero_point[:1])
    found = pack(weight, POOLS[1]).matrix.dequantize()
    np.testing.assert_array_equal(found, weight.dequantize())


WRONG_SIZES: dict[str, dict[str, Any]] = {
    "a row for each": {"scale": (np.ones((4, 1), np.float32), "float32")},
    "column for each": {"scale": (np.ones((3, 2), np.float32), "float32")},
    "zero points have": {"zero_point": np.ones((1, 2), np.int8)},
    "minimums and": {"minimum": (np.ones((1, 2), np.float32), "float32")},
    "cover the columns": {"group_starts": np.array([0, 3, 5], np.int32)},
    "in order": {"group_starts": np.array([0, 7, 6], np.int32)},
    "name every column": {"column_order": np.arange(5, dtype=np.int32)},
    "names no column": {"column_order": np.arange(1, 7, dtype=np.int32)},
}


@pytest.mark.parametrize("problem", WRONG_SIZES)
def test_arrays_that_do_not_fit_each_other_are_refused(problem: str) -> None:
    arguments: dict[str, Any] = {
        "codes": np.zeros((4, 6), np.int8),
        "num_bits": 4,
        "scale": (np.ones((4, 2), np.float32), "float32"),
        "zero_point": None,
        "minimum": None,
        "group_starts": np.array([0, 3, 6], np.int32),
        "column_order": None,
        "pool": POOLS[1],
    }
    Matrix.from_integers(**arguments)
    with pytest.raises(ValueError, match=problem):
        Matrix.from_integers(**(arguments | WRONG_SIZES[problem]))


def test_sub_scales_that_do_not_divide_are_refused() -> None:
    codes, scale = np.zeros((4, 6), np.int8), np.ones((4, 2), np.float32)
    starts, sub = np.arange(7, dtype=np.int32), np.ones((4, 6), np.int8)
    rest = (4, (scale, "float32"), None, None, starts, None, POOLS[1])
    with pytest.raises(ValueError, match="sub-scales for each scale"):
        Matrix.from_integers(codes, *rest, sub)
    with pytest.raises(ValueError, match="the other way around"):
        Matrix.from_integers(codes, *rest, np.ones((4, 4), np.int8), np.ones((4, 4), np.int8))


def test_packed_integers_take_no_more_room_than_their_bits() -> None:
    weight = quantized(128, 256, num_bits=4, group_size=64, kind="zero_point")
    groups = 128 * 4
    expected = 128 * 256 // 2 + groups * (2 + 1)
    assert pack(weight, POOLS[1]).matrix.nbytes == expected


@pytest.mark.parametrize("isa", ISAS)
def test_an_embedding_is_the_rows_of_its_table(isa: str) -> None:
    """Columns of a scattered weight come back in their own order."""
    weight = quantized(40, 24, group_size=8, kind="minimum", scattered=True)
    table = pack(weight, POOLS[1]).matrix

    def build(plan: Plan, _: int) -> int:
        out = plan.add_buffer(24, False)
        plan.add_embed(out, table)
        return out

    found = run_rows(random_floats((40, 3), 0), build, isa)
    np.testing.assert_array_equal(found, weight.dequantize())


def test_a_name_that_does_not_fit_the_items_is_refused() -> None:
    with pytest.raises(ValueError, match="bfloat16"):
        Matrix.from_numbers(np.zeros((2, 2), np.float32), "bfloat16", POOLS[1])


def test_a_scattered_weight_is_sorted_by_group() -> None:
    weight = quantized(4, 16, group_size=4, scattered=True)
    packed = pack(weight, POOLS[1])
    assert packed.column_order is not None and packed.matrix.reordered
    groups = weight.column_groups()[packed.column_order]
    assert (np.diff(groups) >= 0).all()


@pytest.mark.parametrize("bits", [4, 8])
def test_columns_in_an_order_of_their_own_are_found_in_quads(bits: int) -> None:
    """More of them than are packed at a time where they lie in order."""
    random = np.random.default_rng(bits)
    columns, half = 600, 1 << (bits - 1)
    index = random.permutation(np.arange(columns) // 96).astype(np.int32)
    weight = QuantizedTensor(
        IntScheme(bits, True, PerGroup(96)),
        random.integers(-half, half, (70, columns), dtype=np.int8),
        random.standard_normal((70, 7)).astype(np.float16),
        group_index=index,
    )
    packed = pack(weight, POOLS[2], None, True).matrix
    assert packed.reordered and packed.in_quads
    np.testing.assert_array_equal(packed.dequantize(), weight.dequantize())


def test_a_group_index_in_natural_order_asks_for_no_gather() -> None:
    plain = quantized(4, 16, group_size=4)
    indexed = QuantizedTensor(
        plain.scheme, plain.codes, plain.scale, group_index=plain.column_groups()
    )
    assert pack(indexed, POOLS[1]).column_order is None
