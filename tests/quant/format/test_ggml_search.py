"""Searched scales lose no more than ggml's own, than naive ones, and little more than the best."""

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quant.format.errors import UnsupportedModelError
from quant.format.ggml_grid import Levels, half
from quant.format.ggml_kblocks import LAYOUTS as NESTED
from quant.format.ggml_kblocks import quantized_tensor
from quant.format.ggml_search import EFFORTS, round_blocks, search_blocks
from quant.format.gguf_blocks import SCHEMES, decode, encode
from quant.format.gguf_rounding import round_to
from quant.format.gguf_types import IQ4_NL, IQ4_XS, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, GgmlType
from quant.format.tensor import QuantizedTensor
from tests.quant.format.slow_ggml import reference_block, reference_signed

Floats = npt.NDArray[np.float32]
KINDS = [kind for kind in SCHEMES if kind.name in EFFORTS]
PLAIN = [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0]


def random_weight(rows: int, columns: int, seed: int) -> tuple[Floats, Floats]:
    """Weights of uneven groups with outliers, and importances over two decades."""
    random = np.random.default_rng(seed)
    weight = random.standard_normal((rows, columns)) * np.exp(random.standard_normal(columns) / 2)
    weight[random.random((rows, columns)) < 0.01] *= 5
    importance = 10.0 ** random.uniform(-1, 1, columns)
    return (weight * 0.02).astype(np.float32), importance.astype(np.float32)


def loss(weight: Floats, importance: Floats, values: Floats) -> npt.NDArray[np.float64]:
    """float64 [out]."""
    error = weight.astype(np.float64) - values
    total: npt.NDArray[np.float64] = (error**2 * importance).sum(axis=1)
    return total


@pytest.mark.parametrize("kind", PLAIN, ids=str)
def test_no_block_loses_more_than_by_its_plain_range(kind: GgmlType) -> None:
    """The reference's plain rounding, whose scale is the range over the steps."""
    weight, importance = random_weight(256, 32, seed=1)
    plain = decode(kind, round_to("w", kind, weight), weight.shape)
    assert isinstance(plain, QuantizedTensor)
    ours = loss(weight, importance, round_blocks("w", kind, weight, importance).dequantize())
    naive = loss(weight, importance, plain.dequantize())
    assert (ours <= naive * (1 + 1e-5)).all() and ours.sum() < naive.sum()


@pytest.mark.parametrize("kind", [kind for kind in NESTED if kind != IQ4_XS], ids=str)
def test_blocks_of_nested_scales_lose_less_than_the_reference(kind: GgmlType) -> None:
    """The slow reference knows integers alone, so not IQ4_XS."""
    weight, importance = random_weight(24, 256, seed=2)
    ours = loss(weight, importance, round_blocks("w", kind, weight, importance).dequantize())
    theirs = np.concatenate(
        [
            loss(
                row[None],
                importance,
                quantized_tensor(
                    kind, *reference_block(kind, row.astype(float), importance.astype(float))
                ).dequantize(),
            )
            for row in weight
        ]
    )
    assert ours.sum() < theirs.sum()
    assert (ours < theirs).mean() > 0.8


@pytest.mark.parametrize(("kind", "levels"), [(Q4_0, 8), (Q5_0, 16)], ids=["Q4_0", "Q5_0"])
def test_plain_scales_come_near_the_best_of_all(kind: GgmlType, levels: int) -> None:
    """The best of 3,000 scales of either sign is found by trying; the gap to it is well below that
    of the reference's 19."""
    weight, importance = random_weight(100, 32, seed=3)
    h = importance.astype(float)
    ours = loss(weight, importance, round_blocks("w", kind, weight, importance).dequantize())
    shares = np.linspace(0.5, 1.5, 1500)
    gaps, reference_gaps = [], []
    for row, found in zip(weight.astype(float), ours, strict=True):
        reach = float(np.abs(row).max()) / levels
        last = np.array([reference_signed(row, h, levels)])
        tried = [reach * shares, -reach * shares, last]
        scales = np.concatenate(tried).astype(np.float16).astype(float)[:, None]
        codes = np.clip(np.rint(row / scales), -levels, levels - 1)
        losses = (h * (row - scales * codes) ** 2).sum(axis=1)
        gaps.append(found - losses.min())
        reference_gaps.append(losses[-1] - losses.min())
    assert min(gaps) > -0.02 * ours.mean(), "a scan this fine is nearly the best"
    assert np.mean(gaps) < 0.5 * np.mean(reference_gaps)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_blocks_hold_what_was_rounded(kind: GgmlType, seed: int) -> None:
    weight, importance = random_weight(3, 256, seed)
    tensor = round_blocks("w", kind, weight, importance)
    again = decode(kind, encode("w", kind, tensor), weight.shape)
    assert isinstance(again, QuantizedTensor) and again.scheme == tensor.scheme
    assert np.array_equal(again.codes, tensor.codes)
    assert np.array_equal(again.dequantize(), tensor.dequantize())


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_no_other_code_is_nearer(kind: GgmlType) -> None:
    weight, importance = random_weight(4, 256, seed=4)
    tensor = round_blocks("w", kind, weight, importance)
    distance = np.abs(weight - tensor.dequantize())
    floor = 1e-6 * np.abs(weight).max()
    for shift in (-1, 1):
        moved = tensor.codes.astype(np.int16) + shift
        scheme = tensor.scheme
        unsigned = kind in (IQ4_NL, IQ4_XS) or tensor.minimum is not None
        lowest = 0 if unsigned else -(1 << (scheme.num_bits - 1))
        codes = np.clip(moved, lowest, lowest + (1 << scheme.num_bits) - 1).astype(np.int8)
        other = QuantizedTensor(scheme, codes, tensor.scale, minimum=tensor.minimum)
        assert (distance <= np.abs(weight - other.dequantize()) + floor).all()


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_rows_do_not_influence_each_other(kind: GgmlType) -> None:
    weight, importance = random_weight(40, 512, seed=5)
    whole = search_blocks(kind, weight, importance)
    for part in (slice(0, 1), slice(7, 20)):
        alone = search_blocks(kind, weight[part], importance)
        for name, array in alone.parts().items():
            assert np.array_equal(array, whole.parts()[name][part]), name


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_zeros_and_dead_columns_are_no_trouble(kind: GgmlType) -> None:
    weight, importance = random_weight(4, 512, seed=6)
    weight[0], weight[1, :300] = 0, 0
    importance[:64] = 0
    tensor = round_blocks("w", kind, weight, importance)
    values = tensor.dequantize()
    assert np.isfinite(values).all()
    assert np.abs(values[0]).max() <= 113 * 2.0**-24, "float16's smallest number at most"
    assert np.abs(weight - values)[:, :64].max() < np.abs(weight[:, :64]).max()
    no_importance = round_blocks("w", kind, weight, np.zeros_like(importance))
    assert np.array_equal(no_importance.codes, round_blocks("w", kind, weight).codes)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_float16_cannot_scale_is_refused(kind: GgmlType) -> None:
    for bad in (np.nan, np.inf, 1e6):
        weight = np.ones((1, 256), np.float32)
        weight[0, 3] = bad
        with pytest.raises(UnsupportedModelError, match="'w' holds numbers"):
            round_blocks("w", kind, weight)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_dequantized_weight_loses_nothing_worth_naming_again(kind: GgmlType) -> None:
    """What blocks hold exactly can be found again, all but float16's roundings of other factors."""
    weight, _ = random_weight(8, 256, seed=7)
    once = round_blocks("w", kind, weight).dequantize()
    twice = round_blocks("w", kind, once).dequantize()
    ones = np.ones(256, np.float32)
    assert loss(once, ones, twice).sum() < 0.2 * loss(weight, ones, once).sum()


def test_the_nearest_level_of_the_codebook_is_found_by_halves() -> None:
    levels = Levels(IQ4_NL)
    steps = np.arange(-140, 140, 0.125, dtype=np.float32)
    table = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113])
    expected = np.abs(steps[:, None] - table).min(axis=1)
    assert np.array_equal(np.abs(steps - levels.snap(steps.copy())), expected.astype(np.float32))
    assert np.array_equal(table[levels.codes(steps.copy())], levels.snap(steps.copy()))


def test_half_keeps_signs_and_is_never_zero() -> None:
    values = np.array([0.0, -0.0, 1e-9, -1e-9, 70000.0, -70000.0, 0.1], np.float32)
    rounded = half(values)
    assert (rounded != 0).all() and np.isfinite(rounded).all()
    assert np.array_equal(np.signbit(rounded), np.signbit(values))
    assert np.array_equal(rounded, rounded.astype(np.float16).astype(np.float32))
