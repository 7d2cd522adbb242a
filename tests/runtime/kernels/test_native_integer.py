"""Integer products against float64, and bit for bit against themselves in other company."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compile.input_rounding import InputRounding
from quant.format.tensor import QuantizedTensor
from runtime.executors.cpu.weights import RUN, RUNS_OF_INT8, Packed, pack, rounds_to_int8
from runtime.kernels.cpu._native import Plan
from tests.runtime.kernels.harness import ISAS, POOLS, Build, Floats, gamma, random_floats, run_rows
from tests.runtime.kernels.weights import K_TYPES, KINDS, nested_weight, quantized

Doubles = npt.NDArray[np.float64]
TOKEN = InputRounding("int8")
FIXED = InputRounding("int8", fixed=0.0625)


def pack_quads(weight: QuantizedTensor, rounding: InputRounding = RUNS_OF_INT8) -> Packed:
    packed = pack(weight, POOLS[2], rounding, integer_products=True)
    assert packed.matrix.in_quads
    return packed


def product(packed: Packed, bias: Floats | None = None) -> Build:
    rounding = packed.rounding
    assert rounding is not None

    def build(plan: Plan, x: int) -> int:
        rows, columns = packed.matrix.shape
        out = plan.add_buffer(rows, False)
        if packed.matrix.reordered:
            gathered = plan.add_buffer(columns, False)
            plan.add_gather(gathered, x, packed.matrix)
            x = gathered
        rounded = plan.add_rounded_buffer(columns, False)
        plan.add_quantize(rounded, x, rounding.group, rounding.fixed or 0.0, rounding.span)
        plan.add_linear_int8(rounded, [(out, packed.matrix, bias)])
        return out

    return build


def rounded(x: Floats, rounding: InputRounding) -> Doubles:
    """What x is as int8 codes times scales: float32 arithmetic, its result in float64."""
    size = rounding.group or x.shape[1]
    result = np.empty(x.shape, np.float64)
    for start in range(0, x.shape[1], size):
        part = x[:, start : start + size]
        scale = np.abs(part).max(1, keepdims=True) / np.float32(rounding.span)
        scale = np.where(scale == 0, np.float32(2.0**-23), scale)
        if rounding.fixed is not None:
            scale = np.full_like(scale, rounding.fixed)
        codes = np.rint(np.clip(part / scale, -128, 127))
        result[:, start : start + size] = codes.astype(np.float64) * scale
    return result


def in_order(x: Floats, weight: QuantizedTensor) -> tuple[Floats, npt.NDArray[Any]]:
    """x's columns, group by group, and that order."""
    order = np.argsort(weight.column_groups(), kind="stable")
    return np.ascontiguousarray(x[:, order]), order


def check_product(
    weight: QuantizedTensor, x: Floats, rounding: InputRounding, isa: str, bias: Floats | None
) -> None:
    found = run_rows(x, product(pack_quads(weight, rounding), bias), isa)
    ordered, order = in_order(x, weight)
    values, exact = rounded(ordered, rounding), weight.dequantize().astype(np.float64)[:, order]
    added = np.zeros(len(exact)) if bias is None else bias.astype(np.float64)
    expected = values @ exact.T + added
    # Integer sums are exact below 2**24. A run's three factors meet in two roundings and join the
    # sum in one; a minimum has as many of its own, and both are larger than what they add up to.
    parts = np.abs(weight.codes.astype(np.float64)) + (0 if weight.zero_point is None else 128)
    size = np.abs(values) @ (parts * np.abs(plain_scales(weight)))[:, order].T
    if weight.minimum is not None or weight.blocks is not None:
        size += np.abs(values) @ np.abs(exact).T + size
    runs = -(-x.shape[1] // 16)
    assert (np.abs(found - expected) <= gamma(2 * runs + 6) * (size + np.abs(added))).all()


def plain_scales(weight: QuantizedTensor) -> Doubles:
    """The scale of every column, [out, in]."""
    scale = weight.scale.astype(np.float64)[:, weight.column_groups()]
    return np.broadcast_to(scale, weight.codes.shape)


@st.composite
def eligible(draw: st.DrawFn) -> QuantizedTensor:
    group_size = draw(st.sampled_from([16, 32, 48, 64, 128, None]))
    kind = draw(st.sampled_from(KINDS))
    return quantized(
        draw(st.sampled_from([1, 15, 64, 65, 130])),
        draw(st.sampled_from([16, 40, 64, 200, 384])),
        num_bits=draw(st.sampled_from([2, 3, 4, 5, 7 if kind == "minimum" else 8])),
        group_size=group_size,
        kind=kind,
        scattered=draw(st.booleans()) and group_size is not None,
        scale_type=draw(st.sampled_from([np.float16, np.float32])),
        seed=draw(st.integers(0, 99)),
    )


@pytest.mark.parametrize("isa", ISAS)
@settings(max_examples=60)
@given(
    weight=eligible(),
    tokens=st.integers(1, 15),
    rounding=st.sampled_from([RUNS_OF_INT8, TOKEN, FIXED]),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_product_is_within_the_error_of_its_sum(
    isa: str,
    weight: QuantizedTensor,
    tokens: int,
    rounding: InputRounding,
    bias: bool,
    seed: int,
) -> None:
    x = random_floats((tokens, weight.shape[1]), seed)
    x[0, : weight.shape[1] // 2] = 0.0
    added = random_floats((weight.shape[0],), seed + 1) if bias else None
    check_product(weight, x, rounding, isa, added)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("type_name", [name for name in K_TYPES if name != "IQ4_XS"])
def test_products_with_nested_scales(isa: str, type_name: str) -> None:
    weight = nested_weight(130, 512, type_name)
    check_product(weight, random_floats((9, 512), 1), RUNS_OF_INT8, isa, None)


def diagonal(size: int) -> QuantizedTensor:
    """Ones of int8, so that a product gives back what its input was rounded to."""
    weight = quantized(size, size, num_bits=8, group_size=32, scale_type=np.float32)
    weight.codes[:], weight.scale[:] = np.eye(size, dtype=np.int8), 1.0
    return weight


@pytest.mark.parametrize("isa", ISAS)
@given(
    runs=st.integers(1, 40),
    tail=st.sampled_from([0, 0, 1, 16, 31]),
    exponent=st.integers(-44, 30),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_inputs_are_rounded_as_float32_arithmetic_rounds_them(
    isa: str, runs: int, tail: int, exponent: int, seed: int
) -> None:
    """To the bit, whole runs and tails, zeros and numbers below the normal ones among them."""
    columns = 32 * runs + tail
    x = random_floats((3, columns), seed)
    x[1] *= np.float32(10.0**exponent)
    x[2, : columns // 2] = 0.0
    found = run_rows(x, product(pack_quads(diagonal(columns))), isa)
    np.testing.assert_array_equal(found, rounded(x, RUNS_OF_INT8).astype(np.float32))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_bits", [4, 7])
def test_every_instruction_set_has_the_same_bits(kind: str, num_bits: int) -> None:
    """But for the portable one, which has no fused multiply-add."""
    weight = quantized(130, 200, num_bits=num_bits, group_size=32, kind=kind)
    x = random_floats((11, 200), 1)
    found = [run_rows(x, product(pack_quads(weight)), isa) for isa in ISAS if isa != "portable"]
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_bits", [4, 7])
def test_a_row_has_the_same_bits_in_any_company(isa: str, kind: str, num_bits: int) -> None:
    """Every tile height (1 to 6 rows), several row blocks (more than 96), one and two threads."""
    weight = quantized(130, 200, num_bits=num_bits, group_size=32, kind=kind)
    build = product(pack_quads(weight))
    x = random_floats((205, 200), 1)
    together = run_rows(x, build, isa, threads=2)
    np.testing.assert_array_equal(together, run_rows(x, build, isa, threads=1))
    for start in (0, 95, 96):
        for tokens in range(1, 7):
            alone = run_rows(x[start : start + tokens], build, isa)
            np.testing.assert_array_equal(alone, together[start : start + tokens])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("columns", "group_size"), [(1100, 32), (2080, None), (592, 48)])
@pytest.mark.parametrize("kind", KINDS)
def test_columns_that_fill_several_panels(
    isa: str, columns: int, group_size: int | None, kind: str
) -> None:
    """Sums go on where the last panel left them, for tiles of every height."""
    weight = quantized(70, columns, num_bits=4, group_size=group_size, kind=kind)
    x, bias = random_floats((27, columns), 1), random_floats((70,), 2)
    check_product(weight, x, RUNS_OF_INT8, isa, bias)
    build = product(pack_quads(weight), bias)
    together = run_rows(x, build, isa)
    for tokens in range(1, 7):
        np.testing.assert_array_equal(run_rows(x[:tokens], build, isa), together[:tokens])


@pytest.mark.parametrize("rows", [1, 64, 130, 700])
@pytest.mark.parametrize("tokens", [1, 7, 205])
def test_shares_of_any_size_are_worked_off(rows: int, tokens: int) -> None:
    """Fewer pieces than threads, as many, and more; again and again, as threads meet otherwise."""
    build = product(pack_quads(quantized(rows, 96)))
    x = random_floats((tokens, 96), 1)
    alone = run_rows(x, build, ISAS[0])
    for _ in range(20):
        np.testing.assert_array_equal(run_rows(x, build, ISAS[0], threads=5), alone)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("num_bits", [4, 8])
def test_the_largest_codes_do_not_overflow(isa: str, num_bits: int) -> None:
    """Every code and every input at an end of its range, where sums of 16 bits would overflow."""
    weight = quantized(64, 256, num_bits=num_bits, group_size=None)
    low, high = weight.scheme.qmin, weight.scheme.qmax  # type: ignore[union-attr]
    weight.codes[:32], weight.codes[32:] = low, high
    x = np.full((2, 256), -8.0, np.float32)
    x[1] = 7.9375
    check_product(weight, x, FIXED, isa, None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_bits", [3, 4, 7])
def test_codes_are_kept(kind: str, num_bits: int) -> None:
    weight = quantized(70, 200, num_bits=num_bits, group_size=48, kind=kind, scattered=True)
    kept = pack(weight, POOLS[1], None, integer_products=True).matrix
    assert kept.in_quads
    np.testing.assert_array_equal(kept.dequantize(), pack(weight, POOLS[1]).matrix.dequantize())


def test_groups_that_do_not_fit_are_left_to_floats() -> None:
    packed = pack(quantized(4, 48, group_size=24), POOLS[1], None, integer_products=True)
    assert not packed.matrix.in_quads
    assert packed.rounding is None


@pytest.mark.parametrize(
    ("rounding", "fits"),
    [
        (None, True),
        (TOKEN, True),
        (FIXED, True),
        (InputRounding("int8", 2 * RUN), True),
        (InputRounding("int8", RUN // 2), False),
        (InputRounding("e4m3"), False),
        (InputRounding("int8", RUN, "e8m0"), False),
    ],
)
def test_what_can_be_handed_over_as_int8(rounding: InputRounding | None, fits: bool) -> None:
    assert rounds_to_int8(rounding) == fits


@pytest.mark.parametrize("isa", ISAS)
def test_what_is_not_a_number_stays_none(isa: str) -> None:
    """Under a scale that is given, infinity is the largest code."""
    x = random_floats((2, 64), 0)
    x[0, 5] = np.nan
    x[1, 5] = np.inf
    weight = quantized(4, 64, group_size=32)
    assert np.isnan(run_rows(x, product(pack_quads(weight)), isa)).all()
    found = run_rows(x, product(pack_quads(weight, FIXED)), isa)
    assert np.isnan(found[0]).all() and np.isfinite(found[1]).all()
