"""Scales of small floats against the formats' words, other implementations and brute force."""

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from quant.format.codebooks import LARGEST, codebook_values, decode_codebook
from quant.format.float_rounding import (
    codebook_codes,
    fp8_scale,
    mx_scale,
    nvfp4_global_scale,
    nvfp4_scale,
    snap_e2m1,
    snap_e4m3,
)
from quant.format.scheme import Codebook

Float32 = npt.NDArray[np.float32]
FLOATS = st.lists(st.floats(-600, 600, width=32), min_size=1, max_size=20)
MAGNITUDES = st.lists(st.floats(0, float(np.float32(1e30)), width=32), min_size=1, max_size=20).map(
    lambda values: np.array(values, np.float32)
)
SNAP: dict[Codebook, Callable[[Float32], Float32]] = {"e2m1": snap_e2m1, "e4m3": snap_e4m3}


def nearest(value: float, codebook: Codebook) -> float:
    """By trying every code; of two that are as near, the even one."""
    values = [float(v) for v in codebook_values(codebook)]
    codes = [code for code, v in enumerate(values) if v == v]
    return values[min(codes, key=lambda code: (abs(values[code] - value), code % 2))]


@pytest.mark.parametrize("codebook", ["e2m1", "e4m3"])
@given(FLOATS)
def test_snapping_finds_the_nearest(codebook: Codebook, values: list[float]) -> None:
    snapped: Float32 = SNAP[codebook](np.array(values, np.float32))
    assert snapped.dtype == np.float32
    np.testing.assert_array_equal(snapped, [nearest(v, codebook) for v in values])
    codes = codebook_codes(snapped, codebook)
    np.testing.assert_array_equal(decode_codebook(codebook, codes), snapped)


def test_ties_of_4_bit_floats_go_to_the_even_code() -> None:
    ties = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 7.0], np.float32)
    expected = [0, 1, 1, 2, 2, 4, 4, 6]
    np.testing.assert_array_equal(snap_e2m1(ties), expected)
    np.testing.assert_array_equal(snap_e2m1(-ties), np.negative(expected))


def test_torch_snaps_and_scales_alike() -> None:
    torch = pytest.importorskip("torch")
    levels = pytest.importorskip("quant.rounding_algorithms.levels")
    schemes = pytest.importorskip("quant.format.scheme")
    values = np.random.default_rng(0).normal(0, 3, 4096).astype(np.float32)
    ours = torch.from_numpy(snap_e2m1(values))
    assert bool((snap_e2m1(torch.from_numpy(values)) == ours).all())
    scheme = schemes.CodebookScheme("e2m1", schemes.PerGroup(32), "e8m0")
    assert bool((levels.snap(torch.from_numpy(values), scheme) == ours).all())
    scheme = schemes.CodebookScheme("e4m3", schemes.PerChannel())
    ours = torch.from_numpy(snap_e4m3(100 * values))
    assert bool((levels.snap(torch.from_numpy(100 * values), scheme) == ours).all())
    absmax = np.array([0, 1, 448], np.float32)
    assert bool((fp8_scale(torch.from_numpy(absmax)).numpy() == fp8_scale(absmax)).all())


@given(MAGNITUDES)
def test_fp8_scale(absmax: Float32) -> None:
    scale = fp8_scale(absmax)
    assert ((scale > 0) & np.isfinite(scale)).all()
    used = absmax > 1e-30
    top = snap_e4m3(absmax[used] / scale[used])
    np.testing.assert_array_equal(top, np.full(top.shape, 448))
    np.testing.assert_array_equal(fp8_scale(np.array([0, 448], np.float32)), [1, 1])


@given(absmax=MAGNITUDES.filter(lambda values: float(values.max()) > 1e-30))
def test_nvfp4_scales_use_the_whole_range(absmax: Float32) -> None:
    divisor = nvfp4_global_scale(float(absmax.max()))
    scale = nvfp4_scale(absmax, divisor)
    assert scale.dtype == ml_dtypes.float8_e4m3fn
    worth = scale.astype(np.float32)
    assert worth[absmax.argmax()] == 448
    assert (worth >= 2.0**-9).all()
    exact = absmax.astype(np.float64) / 6 * divisor
    normal = exact >= 2.0**-6
    # Three bits of mantissa: half a step is a sixteenth; float32 products add a little.
    assert (np.abs(worth - exact)[normal] <= exact[normal] * (1 / 16 + 1e-6)).all()
    assert (worth[absmax == 0] == 1).all()


def test_nvfp4_edges() -> None:
    assert nvfp4_global_scale(0.0) == 1.0
    assert nvfp4_global_scale(6.0) == 448.0
    assert np.isfinite(nvfp4_global_scale(1e-45))
    tiny = nvfp4_scale(np.array([1e-9, 0], np.float32), nvfp4_global_scale(1.0))
    np.testing.assert_array_equal(tiny.astype(np.float32), [2.0**-9, 1])


@pytest.mark.parametrize("codebook", ["e2m1", "e4m3"])
@given(absmax=MAGNITUDES)
def test_ocp_exponents(codebook: Codebook, absmax: Float32) -> None:
    """The largest of a group lands in the binade of the codebook's largest number."""
    scale = mx_scale(absmax, codebook, "floor").astype(np.float64)
    normal = absmax > 2.0**-100
    top = absmax[normal] / scale[normal]
    binade = 2.0 ** np.floor(np.log2(LARGEST[codebook]))
    assert ((binade <= top) & (top < 2 * binade)).all()
    assert (scale[absmax == 0] == 1).all()
    rounded = mx_scale(absmax, codebook).astype(np.float64)
    doubled = np.zeros(absmax.shape, bool)
    doubled[normal] = top >= 1.75 * binade
    np.testing.assert_array_equal(rounded[normal], (scale * (1 + doubled))[normal])


def test_golden_exponents() -> None:
    scale = mx_scale(np.array([4, 0.5], np.float32), "e2m1", "floor")
    np.testing.assert_array_equal(scale.view(np.uint8), [127, 124])


@pytest.mark.parametrize(("codebook", "bits"), [("e2m1", 4), ("e4m3", 8)])
def test_exponents_are_those_of_the_package(codebook: Codebook, bits: int) -> None:
    torch = pytest.importorskip("torch")
    utils = pytest.importorskip("compressed_tensors.quantization.utils.mxfp_utils")
    random = np.random.default_rng(0)
    absmax = (2.0 ** random.uniform(-60, 60, 5000)).astype(np.float32)
    absmax = np.concatenate([absmax, np.array([1, 1.75, 1.7499, 3.5, 6, 7, 448], np.float32)])
    theirs = utils.generate_mx_scales(torch.from_numpy(absmax), num_bits=bits)
    ours = mx_scale(absmax, codebook).view(np.uint8)
    np.testing.assert_array_equal(ours, theirs.numpy())


@pytest.mark.parametrize("preset", ["NVFP4A16", "FP8_DYNAMIC", "FP8"])
def test_scales_are_those_of_the_package(preset: str) -> None:
    torch = pytest.importorskip("torch")
    helpers = pytest.importorskip("compressed_tensors.quantization.utils.helpers")
    presets = pytest.importorskip("compressed_tensors.quantization.quant_scheme").PRESET_SCHEMES
    absmax = np.random.default_rng(1).uniform(0.01, 3, 500).astype(np.float32)
    args, most = presets[preset]["weights"], torch.from_numpy(absmax)
    shared: Any = None
    if preset == "NVFP4A16":
        shared = helpers.generate_gparam(-most.max(), most.max())
        assert float(shared) == nvfp4_global_scale(float(absmax.max()))
    theirs, _ = helpers.calculate_qparams(-most, most, args, global_scale=shared)
    ours = fp8_scale(absmax)
    if shared is not None:
        ours = nvfp4_scale(absmax, float(shared)).astype(np.float32)
    np.testing.assert_array_equal(ours, theirs.float().numpy())
