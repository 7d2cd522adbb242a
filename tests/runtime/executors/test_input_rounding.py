"""Rounding of inputs: every executor against compressed-tensors, bit for bit; its properties."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs, QuantizationStatus
from compressed_tensors.quantization.lifecycle.forward import forward_quantize
from hypothesis import given, settings
from hypothesis import strategies as st

from compile.input_rounding import InputRounding, check_input, input_rounding
from quant.format.codebooks import E2M1_MAGNITUDES, codebook_values
from quant.format.errors import UnsupportedModelError
from quant.format.scheme import (
    ActivationScheme,
    CodebookScheme,
    FloatScheme,
    IntScheme,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
)
from quant.format.tensor import QuantizedTensor
from runtime.executors.torch.rounding import round_input
from runtime.kernels.cpu._native import Plan
from tests.runtime.kernels.harness import ISAS, run_rows

Floats = npt.NDArray[np.float32]
DIVISOR = 311.5
FIXED = 0.0371

ROUNDINGS: dict[str, InputRounding] = {
    "int8-token": InputRounding("int8"),
    "int8-group": InputRounding("int8", 32),
    "int8-static": InputRounding("int8", fixed=FIXED),
    "e4m3-token": InputRounding("e4m3"),
    "e4m3-group": InputRounding("e4m3", 128),
    "e4m3-static": InputRounding("e4m3", fixed=FIXED),
    "mxfp8": InputRounding("e4m3", 32, "e8m0"),
    "mxfp4": InputRounding("e2m1", 32, "e8m0"),
    "nvfp4": InputRounding("e2m1", 16, "e4m3", divisor=DIVISOR),
}
DYNAMIC = [name for name, rounding in ROUNDINGS.items() if rounding.fixed is None]
FLOAT8, BYTE = torch.float8_e4m3fn, torch.uint8
REFERENCE: dict[str, dict[str, Any]] = {
    "int8-token": {"num_bits": 8, "type": "int", "strategy": "token", "dynamic": True},
    "int8-group": {
        "num_bits": 8, "type": "int", "strategy": "group", "group_size": 32, "dynamic": True,
    },
    "int8-static": {"num_bits": 8, "type": "int", "strategy": "tensor", "dynamic": False},
    "e4m3-token": {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True},
    "e4m3-group": {
        "num_bits": 8, "type": "float", "strategy": "group", "group_size": 128, "dynamic": True,
    },
    "e4m3-static": {"num_bits": 8, "type": "float", "strategy": "tensor", "dynamic": False},
    "mxfp8": {
        "num_bits": 8, "type": "float", "strategy": "group", "group_size": 32, "dynamic": True,
        "scale_dtype": BYTE, "zp_dtype": BYTE,
    },
    "mxfp4": {
        "num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "dynamic": True,
        "scale_dtype": BYTE, "zp_dtype": BYTE,
    },
    "nvfp4": {
        "num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16,
        "dynamic": "local", "scale_dtype": FLOAT8, "zp_dtype": FLOAT8,
    },
}  # fmt: skip


def by_compressed_tensors(x: Floats, name: str) -> Floats:
    """What a quantized module of that package does to its input."""
    module = torch.nn.Module()
    module.quantization_status = QuantizationStatus.FROZEN
    module.input_scale = torch.tensor([FIXED])
    module.input_zero_point = torch.tensor([0])
    if name == "nvfp4":
        module.input_global_scale = torch.tensor([DIVISOR])
    args = QuantizationArgs(symmetric=True, **REFERENCE[name])
    rounded = forward_quantize(module, torch.from_numpy(x)[:, None], "input", args)
    return np.asarray(rounded[:, 0].numpy())


def by_torch(x: Floats, rounding: InputRounding) -> Floats:
    return np.asarray(round_input(torch.from_numpy(x), rounding).numpy())


def natively(x: Floats, rounding: InputRounding, isa: str = "auto") -> Floats:
    def build(plan: Plan, source: int) -> int:
        out = plan.add_buffer(x.shape[1], False)
        fixed, divisor = rounding.fixed or 0.0, rounding.divisor or 1.0
        plan.add_round(
            out, source, rounding.numbers, rounding.group, rounding.scales, fixed, divisor
        )
        return out

    return run_rows(x, build, isa)


def awkward_rows(columns: int, seed: int = 0) -> Floats:
    """Rows of every size that float32 has, outliers, ties, zeros, and infinities under no scale."""
    random = np.random.default_rng(seed)
    normal = random.standard_normal((64, columns)).astype(np.float32)
    sizes = np.float32(2.0) ** random.integers(-140, 120, (64, 1)).astype(np.float32)
    spread = normal * np.float32(2.0) ** random.integers(-20, 20, normal.shape).astype(np.float32)
    outliers = normal.copy()
    outliers[:, ::37] *= 100
    ties = random.integers(-1020, 1021, (64, columns)).astype(np.float32) / 8
    ties[:, ::16] = 127.5
    zeros = np.zeros((3, columns), np.float32)
    zeros[1, 5], zeros[2, columns - 1] = 1e-3, -1e-45
    return np.concatenate([normal, normal * sizes, spread, outliers, ties, ties / 64, zeros])


def executors(x: Floats, rounding: InputRounding) -> list[Floats]:
    return [by_torch(x, rounding), *(natively(x, rounding, isa) for isa in ISAS)]


@pytest.mark.parametrize("name", ROUNDINGS)
def test_every_executor_rounds_as_compressed_tensors_does(name: str) -> None:
    x = awkward_rows(256)
    expected = by_compressed_tensors(x, name)
    assert not np.array_equal(expected, x)
    for found in executors(x, ROUNDINGS[name]):
        np.testing.assert_array_equal(found, expected)


def test_every_power_of_two_scale_is_that_of_compressed_tensors() -> None:
    """One group for each quarter of each exponent of float32, and its neighbours. The last quarter
    is left out: its scale overflows there."""
    quarters = np.arange(1 << 21, 0x7F60_0000, 1 << 21, dtype=np.uint32)
    tops = np.concatenate([quarters - 1, quarters, quarters + 1])
    x = np.zeros((len(tops), 32), np.float32)
    x[:, 3] = tops.view(np.float32)
    x[:, 4] = -0.37 * x[:, 3]
    for name in ("mxfp4", "mxfp8"):
        expected = by_compressed_tensors(x, name)
        for found in executors(x, ROUNDINGS[name]):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", ROUNDINGS)
@settings(max_examples=25, deadline=None)
@given(columns=st.integers(1, 70), rows=st.integers(1, 5), seed=st.integers(0, 2**16))
def test_odd_widths_end_in_a_short_group(name: str, columns: int, rows: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    x = (random.standard_normal((rows, columns)) * 10.0 ** random.integers(-3, 3)).astype("f4")
    expected = nearest(x, ROUNDINGS[name])
    for found in executors(x, ROUNDINGS[name]):
        np.testing.assert_array_equal(found, expected)


def nearest(x: Floats, rounding: InputRounding) -> Floats:
    """The obvious way: each quotient goes to the nearest of all levels, ties to the even code."""
    out, size = np.empty_like(x), rounding.group or x.shape[1]
    table, codes = levels_of(rounding.numbers)
    for row in range(len(x)):
        for start in range(0, x.shape[1], size):
            part = x[row, start : start + size]
            scale = obvious_scale(np.abs(part).max(), rounding)
            with np.errstate(over="ignore"):
                gaps = np.abs((part / scale).astype(np.float64)[:, None] - table)
            ties = gaps == gaps.min(1, keepdims=True)
            pick = (ties * (2 - codes % 2)).argmax(1)
            out[row, start : start + size] = table[pick].astype(np.float32) * scale
    return out


def levels_of(numbers: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """All values, and for each the number of its magnitude, whose parity decides ties."""
    if numbers == "int8":
        integers = np.arange(-128, 128)
        return integers.astype(np.float64), np.abs(integers)
    magnitudes = codebook_values("e4m3")[:127] if numbers == "e4m3" else np.array(E2M1_MAGNITUDES)
    places = np.arange(len(magnitudes))
    both = np.concatenate([magnitudes, -magnitudes[1:]]).astype(np.float64)
    return both, np.concatenate([places, places[1:]])


def obvious_scale(largest: np.float32, rounding: InputRounding) -> np.float32:
    import ml_dtypes

    if rounding.fixed is not None:
        return np.float32(rounding.fixed)
    if rounding.scales == "e8m0":
        top = 8 if rounding.numbers == "e4m3" else 2
        exponent = -200.0 if largest == 0 else np.floor(np.log2(np.float64(largest) / 1.75) + 1)
        # 1.75 * 2**e and more count as 2**(e + 1).
        return np.float32(2.0 ** max(exponent - top, -127.0))
    span = {"int8": 127.5, "e4m3": 448.0, "e2m1": 6.0}[rounding.numbers]
    scale = np.float32(largest / np.float32(span))
    if rounding.divisor is not None:
        divisor = np.float32(rounding.divisor)
        stored = np.minimum(divisor * scale, np.float32(448)).astype(ml_dtypes.float8_e4m3fn)
        scale = np.float32(max(float(stored), 0.0) or 0.125) / divisor
    return scale if scale != 0 else np.float32(2.0**-23)


@pytest.mark.parametrize("name", ["mxfp8", "mxfp4", "int8-static", "e4m3-static"])
def test_what_is_rounded_stays_as_it_is(name: str) -> None:
    """Where the scale does not move: stored ones, and powers of two (but for e4m3 groups whose
    largest number is rounded up to 448; none of these is)."""
    x = awkward_rows(256)[:64]
    once = natively(x, ROUNDINGS[name])
    np.testing.assert_array_equal(natively(once, ROUNDINGS[name]), once)


@pytest.mark.parametrize("name", DYNAMIC)
def test_a_group_of_zeros_stays_zero_and_touches_nothing(name: str) -> None:
    size = ROUNDINGS[name].group or 256
    x = awkward_rows(256)[:1].repeat(2, axis=0)
    x[1, :size] = 0
    for found in executors(x, ROUNDINGS[name]):
        assert not found[1, :size].any()
        np.testing.assert_array_equal(found[1, size:], found[0, size:])


@pytest.mark.parametrize("name", DYNAMIC)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_none_spoils_its_group_alone(name: str, bad: float) -> None:
    """It must not become a plausible number: what follows, and the user, shall see it."""
    size = ROUNDINGS[name].group or 256
    x = awkward_rows(256)[:2]
    clean = natively(x, ROUNDINGS[name])
    x[1, 7] = bad
    for found in executors(x, ROUNDINGS[name]):
        assert np.isnan(found[1, :size]).all()
        found[1, :size] = clean[1, :size]
        np.testing.assert_array_equal(found, clean)


@pytest.mark.parametrize("name", ["int8-static", "e4m3-static"])
def test_a_stored_scale_saturates_and_keeps_nan(name: str) -> None:
    rounding = ROUNDINGS[name]
    lowest, highest = (-128, 127) if rounding.numbers == "int8" else (-448, 448)
    x = np.array([[np.nan, np.inf, -np.inf, 1e30, -1e30, 0.0]], np.float32)
    expected = np.array([np.nan, highest, lowest, highest, lowest, 0.0], np.float32)
    for found in executors(x, rounding):
        np.testing.assert_array_equal(found[0], expected * np.float32(FIXED))


def weight(
    activation: ActivationScheme | None, input_scale: float | None = None
) -> QuantizedTensor:
    scheme = CodebookScheme("e4m3", PerChannel(), activation=activation)
    codes, scale = np.zeros((2, 32), np.int8), np.ones((2, 1), np.float32)
    return QuantizedTensor(scheme, codes, scale, input_scale=input_scale)


@pytest.mark.parametrize(
    ("activation", "stored", "expected"),
    [
        (None, None, None),
        (ActivationScheme("int8"), None, InputRounding("int8")),
        (ActivationScheme("e4m3", PerToken()), None, InputRounding("e4m3")),
        (ActivationScheme("e4m3", PerGroup(128)), None, InputRounding("e4m3", 128)),
        (ActivationScheme("e4m3", PerGroup(32)), None, ROUNDINGS["mxfp8"]),
        (ActivationScheme("e2m1", PerGroup(32)), None, ROUNDINGS["mxfp4"]),
        (ActivationScheme("int8", PerGroup(32)), None, ROUNDINGS["int8-group"]),
        (ActivationScheme("e2m1", PerGroup(16)), DIVISOR, ROUNDINGS["nvfp4"]),
        (ActivationScheme("e4m3", PerTensor(), False), FIXED, ROUNDINGS["e4m3-static"]),
        (ActivationScheme("int8", PerTensor(), False), FIXED, ROUNDINGS["int8-static"]),
    ],
)
def test_schemes_say_how_to_round(
    activation: ActivationScheme | None, stored: float | None, expected: InputRounding | None
) -> None:
    assert input_rounding("a.weight", weight(activation, stored)) == expected
    check_input("a.weight", weight(activation, stored).scheme)


@pytest.mark.parametrize("scale", [None, 0.0, -1.0, np.nan, np.inf])
def test_a_static_scale_that_is_no_positive_number_is_refused(scale: float | None) -> None:
    static = ActivationScheme("e4m3", PerTensor(), False)
    with pytest.raises(UnsupportedModelError, match=r"a\.weight is to round its input"):
        input_rounding("a.weight", weight(static, scale))


def test_a_scale_for_a_whole_step_is_refused() -> None:
    whole = IntScheme(8, True, PerChannel(), ActivationScheme("int8", PerTensor()))
    with pytest.raises(UnsupportedModelError, match="depend on its neighbours"):
        check_input("a.weight", whole)
    check_input("a.weight", FloatScheme("float32"))
